"""Dictionaries and tokenizers of imported models."""
