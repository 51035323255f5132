"""What fairseq gets wrong or leaves out, mended from outside."""
