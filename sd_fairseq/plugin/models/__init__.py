"""fairseq models of the plugin."""
