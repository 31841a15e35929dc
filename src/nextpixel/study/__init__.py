"""Loss against probe accuracy over the checkpoints of several runs (Chen et al. 2020, Figure 3).

Loss and accuracy of every checkpoint are measured on the same test images; layer and strength of each probe are chosen
on held-out training images (probing.py).
"""

from nextpixel.study.correlations import statistics
from nextpixel.study.measuring import measure_runs
from nextpixel.study.points import LayerScore, Point
