"""What is looked at before fairseq acts: command lines, checkpoints, options; errors of one line."""
