"""A decoder step in C++ for a few rows on a CPU with AVX-512; PyTorch's way is taken wherever it does not apply."""
