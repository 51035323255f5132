"""What generation adds to fairseq's search."""
