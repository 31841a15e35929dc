"""Pages and figures of runs, studies and odd images.

May use study and training.
"""
