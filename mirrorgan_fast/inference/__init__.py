"""What inference runs: fused networks, CUDA graphs, exported files."""
