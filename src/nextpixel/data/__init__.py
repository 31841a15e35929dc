"""Decoded sets in memory maps, prepared folders, training batches, labels.

May use images.
"""
