"""Draws the figures of docs/how-it-works.md from the package: python docs/figures.py"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from numpy.typing import NDArray
from PIL import Image

import nextpixel
from nextpixel.images.fitting import fit_image
from nextpixel.network.positions import raster

FOLDER = Path(__file__).parent / "how-it-works"
CAT = Path(nextpixel.__file__).parent / "assets" / "pictures" / "cat.jpg"
INK, GIVEN, DRAWN = "#263238", "#00897b", "#ef6c00"
GROUND = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}


def save(name: str) -> None:
    plt.savefig(FOLDER / name, dpi=130, facecolor="white", pil_kwargs={"optimize": True})
    plt.close()


def show(axes: Axes, pixels: NDArray[np.uint8], title: str) -> None:
    axes.imshow(pixels)
    axes.set_title(title, fontsize=10, color=INK)
    axes.axis("off")


def tokens(
    model: nextpixel.ImageGPT, pixels: NDArray[np.uint8], corner: tuple[int, int] = (9, 7), size: int = 6
) -> None:
    """A picture, its palette colours, and the numbers of a part of them."""
    numbers = model.tokenizer.encode(pixels[None])
    decoded = model.tokenizer.decode(numbers)[0]
    top, left = corner
    part = np.s_[top : top + size, left : left + size]
    _, axes = plt.subplots(1, 3, figsize=(9, 3.3), layout="constrained")
    show(axes[0], pixels, "32 x 32 pixels")
    show(axes[1], decoded, "each the nearest of 512 colours")
    for each in axes[:2]:
        each.add_patch(plt.Rectangle((left - 0.5, top - 0.5), size, size, fill=False, edgecolor="white", linewidth=2))
    show(axes[2], decoded[part], "their numbers are the tokens")
    grid = numbers[0].reshape(32, 32)[part]
    for (row, column), light in np.ndenumerate(decoded[part].mean(-1) > 110):
        axes[2].text(
            column, row, int(grid[row, column]), ha="center", va="center", fontsize=9, color=INK if light else "white"
        )
    save("tokens.png")


def order(side: int = 3) -> None:
    """Which token each slot of the network's input carries, and which it predicts."""
    config = nextpixel.ImageGPTConfig(layers=1, width=8, heads=1, side=side)
    positions = raster(config, torch.device("cpu"))
    _, axes = plt.subplots(1, 2, figsize=(8, 2.5), width_ratios=[1, 2.4], layout="constrained")
    axes[0].set_title("raster order", fontsize=10, color=INK)
    axes[0].set(xlim=(-0.5, side - 0.5), ylim=(side - 0.5, -0.5), aspect="equal", xticks=[], yticks=[])
    places = [divmod(int(place), side) for place in positions.predicted]
    for number, (row, column) in enumerate(places):
        axes[0].text(column, row, number, ha="center", va="center", fontsize=11, color=INK, bbox=GROUND)
    axes[0].plot([c for _, c in places], [r for r, _ in places], color=GIVEN, linewidth=1, alpha=0.5, zorder=0)
    axes[1].set_title("the network: what a slot is given, and what it predicts", fontsize=10, color=INK)
    axes[1].set(xlim=(-2.2, config.tokens - 0.4), ylim=(-0.6, 2.6))
    axes[1].axis("off")
    for label, height in (("input", 0), ("slot", 1), ("predicts", 2)):
        axes[1].text(-2.2, height, label, va="center", fontsize=10, color=INK)
    for slot, (carried, predicted) in enumerate(zip(positions.carried.tolist(), positions.predicted.tolist())):
        start = carried == config.tokens
        axes[1].text(
            slot, 0, "start" if start else carried, ha="center", va="center", fontsize=8 if start else 10, color=GIVEN
        )
        axes[1].text(slot, 1, slot, ha="center", va="center", fontsize=9, color="#607d8b", bbox=GROUND)
        axes[1].text(slot, 2, predicted, ha="center", va="center", fontsize=10, color=DRAWN)
        axes[1].annotate("", (slot, 1.75), (slot, 0.25), arrowprops={"arrowstyle": "->", "color": "#cfd8dc"}, zorder=0)
    save("order.png")


def cache(side: int = 4, prompt: int = 8) -> None:
    """Which predictions change when a pixel is changed: found by changing each in a random network."""
    config = nextpixel.ImageGPTConfig(layers=2, width=32, heads=2, side=side, colors=8)
    model = nextpixel.ImageGPT(config, seed=0).eval()
    random = torch.Generator().manual_seed(0)
    torch.nn.init.normal_(model.head.weight, generator=random)  # zeros in a new model
    picture = torch.randint(0, 8, (1, config.tokens), generator=random)
    changed = picture.repeat(config.tokens, 1)
    changed[range(config.tokens), range(config.tokens)] += 1
    changed %= 8
    with torch.inference_mode():
        differs = (model(changed) - model(picture)).abs().amax(-1).T > 1e-6  # (predicted, changed)
    colors = np.full((*differs.shape, 3), 255, np.uint8)
    ground = [tuple(int(hue[i : i + 2], 16) for i in (1, 3, 5)) for hue in (GIVEN, DRAWN)]
    colors[:prompt][differs[:prompt].numpy()], colors[prompt:][differs[prompt:].numpy()] = ground
    _, axes = plt.subplots(figsize=(6.2, 4.2), layout="constrained")
    axes.imshow(colors)
    axes.set_xticks(np.arange(config.tokens + 1) - 0.5, [], minor=True)
    axes.set_yticks(np.arange(config.tokens + 1) - 0.5, [], minor=True)
    axes.grid(which="minor", color="#cfd8dc", linewidth=0.6)
    axes.tick_params(which="both", length=0, labelsize=8, colors=INK)
    axes.set_xticks(range(config.tokens))
    axes.set_yticks(range(config.tokens))
    axes.set_xlabel("pixel that is changed", color=INK)
    axes.set_ylabel("prediction that changes", color=INK)
    axes.text(
        config.tokens, (prompt - 1) / 2, "prefill:\nall given pixels\nin one pass", va="center", fontsize=9, color=GIVEN
    )
    axes.text(
        config.tokens,
        (config.tokens + prompt - 1) / 2,
        "steps:\none pixel a pass,\nwhich reads the cache\nof all before it",
        va="center",
        fontsize=9,
        color=DRAWN,
    )
    save("cache.png")


def surprise(model: nextpixel.ImageGPT, pixels: NDArray[np.uint8]) -> None:
    """The cat, how surprising each of its pixels is, and four completions of its upper half."""
    heat = nextpixel.surprise(model, pixels)[0]
    drawn = nextpixel.complete(model, pixels, keep=0.5, n=4, seed=0, speed="exact")
    _, axes = plt.subplots(1, 3, figsize=(9, 3.3), layout="constrained")
    show(axes[0], pixels, "the picture")
    shown = axes[1].imshow(heat, cmap="magma")
    axes[1].set_title(f"nats of each pixel, mean {heat.mean():.2f}", fontsize=10, color=INK)
    axes[1].axis("off")
    plt.colorbar(shown, ax=axes[1], shrink=0.75).ax.tick_params(labelsize=8)
    show(axes[2], np.asarray(nextpixel.grid(drawn, 2)), "four draws from its upper half")
    save("nats.png")


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    torch.set_num_threads(1)
    embedded = nextpixel.load()
    cat = fit_image(Image.open(CAT), (32, 32))
    tokens(embedded, cat)
    order()
    cache()
    surprise(embedded, cat)
