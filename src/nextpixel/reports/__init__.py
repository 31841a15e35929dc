"""Pages and figures of runs, studies and odd pictures.

May use study and training.
"""
