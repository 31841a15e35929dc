"""Likelihoods, metrics of samples, odd images.

May use representation and drawing.
"""
