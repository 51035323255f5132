"""Research tools: what paths cost and are worth, and policies fitted to that."""
