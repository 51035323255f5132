"""Question answering: character offsets, windows over long contexts, spans."""
