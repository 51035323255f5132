"""Answers of a trained checkpoint outside fairseq's commands: classes of sentences, spans of questions."""
