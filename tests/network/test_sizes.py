"""S, M and L at their real shapes, with random weights: they load, complete and give features in little memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import nextpixel
from nextpixel.network.decoding import Decoder, Int8Decoder

pytestmark = pytest.mark.slow

WRITE = """
import sys, torch, nextpixel
model = nextpixel.ImageGPT(nextpixel.SIZES[sys.argv[1]], seed=1)
torch.nn.init.normal_(model.head.weight, std=0.02)
model.palette = nextpixel.Palette.openai()
nextpixel.save(model, sys.argv[2])
"""

# Peak of private memory (RssAnon) after the imports, sampled every 2 ms by a second thread.
USE = """
import json, sys, threading, time
import numpy as np, torch
import nextpixel
from nextpixel.representation.extraction import features
nextpixel.load, nextpixel.complete, nextpixel.ImageGPT

def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) * 1024

peak, done = 0, False
def watch():
    global peak
    while not done:
        peak = max(peak, anonymous())
        time.sleep(0.002)

picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
before = anonymous()
watcher = threading.Thread(target=watch)
watcher.start()
peaks, seconds = {}, {}
start = time.perf_counter()
model = nextpixel.load(sys.argv[1], dtype=torch.bfloat16)
for name, work in {
    "load": lambda: None,
    "complete": lambda: nextpixel.complete(model, picture, keep=31 / 32, speed=sys.argv[2]),
    "features": lambda: features(model, picture, layer=model.config.layers // 2),
}.items():
    result = work()
    peaks[name], seconds[name] = peak - before, time.perf_counter() - start
    peak, start = 0, time.perf_counter()
done = True
watcher.join()
assert np.isfinite(result).all() and result.shape == (1, model.config.width)
print(json.dumps({"peaks": peaks, "seconds": seconds, "parameters": model.config.parameters}))
"""


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("size", ["s", "m", "l"])
def test_peak_memory_is_at_most_1_3_times_the_weights_plus_the_cache(size: str, tmp_path: Path) -> None:
    """In bf16 with `speed="exact"`; by default with the int8 weights beside those, and an int8 cache."""
    subprocess.run([sys.executable, "-c", WRITE, size, str(tmp_path / "model")], check=True)
    shape = nextpixel.SIZES[size]
    for speed, bytes_per_weight, cache in (
        ("exact", 2, Decoder.cache_bytes(shape, 2)),
        ("auto", 3, Int8Decoder.cache_bytes(shape, 2)),
    ):
        command = [sys.executable, "-c", USE, str(tmp_path / "model"), speed]
        result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        weights, peaks = bytes_per_weight * result["parameters"], result["peaks"]
        print(size, speed, {name: f"{bytes_ / weights:.2f} x weights" for name, bytes_ in peaks.items()}, result)
        assert peaks["load"] <= 1.3 * 2 * result["parameters"]
        assert peaks["complete"] <= 1.3 * weights + cache
        assert peaks["features"] <= 1.3 * weights + cache
