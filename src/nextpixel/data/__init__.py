"""Decoded sets in memory maps, prepared folders, training batches, labels.

May use images. decoded.decode opens a source and decodes it into the cache, or reads it from there; Batches draws
training batches from its images. prepared.prepare decodes a source into a folder instead. labels.given_labels finds
the labels of a source, and labelled the images that have one.
"""
