"""Triton kernels, one file per op, installed as `mirrorgan_fast.kernels`."""
