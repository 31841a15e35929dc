# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Your own folder, from plan to predict
#
# A folder of pictures, few of them labelled: plan the run, pretrain without labels, fit a classifier to few labels and
# predict. Scikit-learn's digits, 1,797 scans of 8 x 8 pixels, stand for your own; put your folder in the place of
# `digits`, with a larger side.

# %%
STEPS = 150  # of 32 pictures; your own need more
LABELS = 10  # a class

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
# ## Plan
#
# What would it cost? `nextpixel plan` takes the settings of `pretrain` and runs nothing. Here, a real run is planned
# for one rented GPU at 0.5 an hour:

# %%
# !nextpixel plan --images 1M --side 32 --size s --steps 100000 --hardware rtx4090 --hourly-rate 0.5

# %% [markdown]
# ## Pretrain, without labels
#
# `palette="exact"` keeps the 17 greys of the scans as they are. The run folder has the log, curves and checkpoints;
# Ctrl-C saves, and `nextpixel.pretrain(resume="runs/digits")` resumes.

# %%
import nextpixel

model = nextpixel.pretrain(
    "digits/train",
    out="runs/digits",
    side=8,
    layers=2,
    width=64,
    heads=2,
    palette="exact",
    preset="modern",
    steps=STEPS,
    batch_images=32,
    augment="none",
    sample_images=0,
    evaluate_every_steps=STEPS,
)

# %%
print(model)
print(f"test images: {nextpixel.nll(model, 'digits/test').mean():.3f} nats per pixel")

# %% [markdown]
# What it draws, each from a seed of its own:

# %%
nextpixel.sample(model, n=20, seed=0)

# %% [markdown]
# ## Classify with few labels
#
# The probe is a linear classifier on the model's features. It is fitted to 10 labelled pictures a class; raw pixels
# are the baseline.

# %%
from sklearn.linear_model import LogisticRegression

few = [path for label in range(10) for path in sorted(Path(f"digits/train/{label}").iterdir())[:LABELS]]
names = [path.parent.name for path in few]
probe = nextpixel.LinearProbe(model).fit([Image.open(path) for path in few], names)
accuracy = probe.score("digits/test")
squares, answers = digits.images.reshape(len(digits.images), -1) / 16, digits.target
chosen = [int(path.stem) for path in few]
raw = LogisticRegression(max_iter=1000).fit(squares[chosen], answers[chosen]).score(squares[1300:], answers[1300:])

# %%
print(probe)
print(f"{LABELS} labels a class, accuracy on {len(digits.images) - 1300} test images:")
print(f"features {accuracy:.1%}, raw pixels {raw:.1%}")

# %% [markdown]
# ## Predict

# %%
new = sorted(Path("digits/test").rglob("*.png"))[::40]
classes = probe.predict([Image.open(path) for path in new])

# %%
for path, found in zip(new, classes):
    print(f"{path}: {found}")

# %% [markdown]
# On the command line: `nextpixel probe digits --labels-per-class 10 --out probe`, then `nextpixel predict probe
# digits/test`. More labels, fine-tuning and small networks: the guides to aerial photographs and X-rays.
