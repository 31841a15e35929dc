"""Features of pictures and what is fitted on them: probes, ridge regression, baselines.

May use checkpoints, data and network.
"""
