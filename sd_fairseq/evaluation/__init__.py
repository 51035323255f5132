"""Evaluation: ROUGE as ROUGE-1.5.5 prints it, and what was skipped at which cost."""
