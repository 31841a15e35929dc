"""Does a lower loss go with better features? Loss against probe accuracy, over the checkpoints of several runs.

The figure is that of Chen et al. 2020 (Figure 3). Loss and accuracy are measured on the same test images for every
checkpoint; layer and strength of each probe are chosen on held-out training images, as everywhere (probing.py).
"""

from nextpixel.study.correlations import Estimate, Gap, Statistics, statistics
from nextpixel.study.measuring import measure_runs, probe_layers
from nextpixel.study.points import LayerScore, Point, Study

__all__ = [
    "Estimate",
    "Gap",
    "LayerScore",
    "Point",
    "Statistics",
    "Study",
    "measure_runs",
    "probe_layers",
    "statistics",
]
