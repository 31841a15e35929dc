"""Int8 blocks on a CPU: packed weights, and the C kernels compiled on first use."""
