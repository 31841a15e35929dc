"""The loop that draws tokens, and sample, complete and stream on it.

May use images and network.
"""
