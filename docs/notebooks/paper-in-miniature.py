# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # The paper's figure, in miniature
#
# Chen et al. 2020 found that a lower loss on pixels means better features: along a run, and at equal loss for the
# larger model (their Figure 3). Here two networks learn scikit-learn's digits, and each kept checkpoint gets two
# numbers: nats per pixel, and the accuracy of a linear probe. Two small runs of one seed show the method; the guide to
# loss against features says what such a figure can prove.

# %%
STEPS = 256
SHAPES = {"1 x 32": (1, 32, 1), "2 x 64": (2, 64, 2)}  # layers, width, heads
TRAINED = 1300  # labelled pictures for the probe

# %%
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

digits = load_digits()
for number, (pixels, label) in enumerate(zip(digits.images, digits.target)):
    folder = Path("digits") / ("train" if number < 1300 else "test") / str(label)
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.uint8(pixels * 255 / 16)).save(folder / f"{number:04}.png")

# %% [markdown]
# The paper's network and recipe, no preset. A run keeps its checkpoints at the last step and its halvings.

# %%
import nextpixel

for name, (layers, width, heads) in SHAPES.items():
    nextpixel.pretrain(
        "digits/train",
        out=f"runs/{name}",
        side=8,
        layers=layers,
        width=width,
        heads=heads,
        palette="exact",
        learning_rate=0.005,
        steps=STEPS,
        batch_images=32,
        augment="none",
        sample_images=0,
        evaluate_every_steps=STEPS,
    )

# %%
pictures = np.repeat(np.uint8(digits.images * 255 / 16)[..., None], 3, axis=-1)
known, test = list(pictures[:TRAINED]), list(pictures[1300:])
points = {}
for name in SHAPES:
    for folder in sorted(Path(f"runs/{name}").glob("step_*"))[1:]:
        model = nextpixel.load(folder)
        probe = nextpixel.LinearProbe(model, pooling="mean").fit(known, digits.target[:TRAINED])
        nats, accuracy = nextpixel.nll(model, test).mean(), probe.score(test, digits.target[1300:])
        points.setdefault(name, []).append((int(folder.name[5:]), float(nats), accuracy))

# %%
for name, measured in points.items():
    for step, nats, accuracy in measured:
        print(f"{name}, step {step:4}: {nats:.3f} nats per pixel, probe {accuracy:.1%}")

# %%
import matplotlib.pyplot as plt

for name, measured in points.items():
    _, nats, accuracy = zip(*measured)
    plt.plot(nats, [100 * share for share in accuracy], "o-", label=name)
plt.gca().invert_xaxis()  # as in the paper: the loss falls to the right
plt.xlabel("nats per pixel on test images")
plt.ylabel("accuracy of a linear probe, %")
plt.legend()
plt.show()

# %% [markdown]
# At equal loss the larger network is ahead, as in the paper. Along a run the accuracy does not follow every step of the
# loss: one seed, few pictures.
#
# `nextpixel study runs/* --data labelled/ --out study` measures and draws the same, for any number of runs, with
# baselines and intervals.
