"""Kernels of the sparse layers for GPUs, in Triton: torch, triton, numpy and scipy suffice to import and run them."""
