"""Readers of other packages' weights, and the tables that translate their names."""
