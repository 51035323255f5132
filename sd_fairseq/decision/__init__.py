"""What may be skipped, who decides, and the record of what was decided."""
