"""Triton kernels, one file an op, installed as `mirrorgan_fast.kernels`."""
