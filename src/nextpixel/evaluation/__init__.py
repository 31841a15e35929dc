"""Likelihoods, metrics of samples, odd pictures.

May use representation and drawing.
"""
