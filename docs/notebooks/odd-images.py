# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Odd images
#
# Which pictures of a set do not belong? The model learns what is normal, from scikit-learn's digits in one array (a
# folder works as well); a picture's nats and distances to normal ones then rank new pictures. A quarter of the new ones
# are spoilt, so that the ranking can be checked.

# %%
STEPS = 150
NEW = 160  # pictures, a quarter of them spoilt

# %%
import numpy as np
from sklearn.datasets import load_digits

import nextpixel

digits = np.uint8(load_digits().images * 255 / 16)
pictures = np.repeat(digits[..., None], 3, axis=-1)  # red, green, blue
np.save("normal.npy", pictures[:1300])

model = nextpixel.pretrain(
    "normal.npy",
    out="runs/normal",
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

# %% [markdown]
# ## Spoil some
#
# In every fourth new picture the sixteen pixels in the middle are shuffled.

# %%
random = np.random.default_rng(0)
new = pictures[1300 : 1300 + NEW].copy()
odd = np.arange(len(new)) % 4 == 0
for number in np.flatnonzero(odd):
    new[number, 2:6, 2:6] = random.permutation(new[number, 2:6, 2:6].reshape(16, 3)).reshape(4, 4, 3)
nextpixel.grid([*new[odd][:8], *new[~odd][:8]], 8)

# %% [markdown]
# The first row is spoilt, the second is not.
#
# ## Rank
#
# Half of the normal pictures are what others are compared with, the other half calibrates: p is the share of normal
# pictures that are at least as odd.

# %%
found = nextpixel.odd_images(model, list(new), against="normal.npy")

# %%
from sklearn.metrics import roc_auc_score

for column, values in found.values.items():
    signed = -values if column == "png_bytes" else values  # a small file counts as odd
    print(f"{column:18} AUROC {roc_auc_score(odd, signed):.3f}")

# %% [markdown]
# `pixel_distance` uses no model: always look at it, too. No column is best for every kind of oddness; here the defects
# are known, in general they are not. The sixteen oddest by nats for their file size, and how many of them were spoilt:

# %%
order = np.argsort(-found.values["nats_corrected"])[:16]
print(f"{odd[order].sum()} of {len(order)} are spoilt; smallest p {found.p_values['nats_corrected'][order].min():.4f}")
nextpixel.grid(list(new[order]), 8)

# %% [markdown]
# On the command line: `nextpixel score new/ --against normal/ --report odd.html`. The guide to odd images says what
# each column can and cannot see.
