"""How decisions are carried out: rows that keep a sub-layer run it, the others do not."""
