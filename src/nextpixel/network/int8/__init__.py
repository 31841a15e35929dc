"""Int8 blocks on a CPU: packed weights, and the C loops compiled on first use."""
