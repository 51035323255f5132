"""The sub-layers of model families that fairseq does not have, in plain PyTorch."""
