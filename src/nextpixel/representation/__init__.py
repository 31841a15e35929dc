"""Features of images and what is fitted to them: probes, ridge regression, baselines.

May use checkpoints, data and network.
"""
