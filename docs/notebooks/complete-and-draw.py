# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Complete and draw
#
# The embedded model sees 32 x 32 pixels. It is small and was trained for some hours of one or two CPU cores, so
# everything here takes seconds.

# %%
from importlib import resources

import nextpixel

N = 6  # pictures to draw
pictures = resources.files("nextpixel") / "assets" / "pictures"
model = nextpixel.load()
model

# %% [markdown]
# ## Complete
#
# The upper half of the bundled cat is kept, the lower half drawn, a pixel at a time. A list of PIL pictures comes back,
# which a notebook shows as a grid; `[0].save("cat.png")` saves one.

# %%
cats = nextpixel.complete(model, pictures / "cat.jpg", keep=0.5, n=N, seed=0)
cats

# %% [markdown]
# Lower temperatures draw safer, flatter pictures.

# %%
nextpixel.complete(model, pictures / "cat.jpg", keep=0.5, n=N, seed=0, temperature=0.7)

# %% [markdown]
# ## Fill a hole
#
# A mask marks what to fill, here a box; everything around it is kept.

# %%
import numpy as np

mask = np.zeros((32, 32), bool)
mask[11:21, 11:21] = True
nextpixel.complete(model, pictures / "cifar10-test-0006-automobile.png", mask=mask, n=N // 2, seed=0)

# %% [markdown]
# ## Draw
#
# Whole pictures, from nothing but a seed.

# %%
nextpixel.sample(model, n=N, seed=1)

# %% [markdown]
# `faces`, the second bundled model, draws pixel art from words.

# %%
faces = nextpixel.load("faces")
nextpixel.sample(faces, N, caption="long red hair, glasses", guidance=1.5, seed=0)

# %%
six = nextpixel.sample(faces, N, caption="short black hair, green shirt", guidance=1.5, seed=0)
nextpixel.grid(six, N, zoom=5)

# %% [markdown]
# ## What it finds likely
#
# Nats per pixel say how well the model predicts a picture (lower is likelier), `surprise` says where it does not.

# %%
print(f"the cat: {nextpixel.nll(model, pictures / 'cat.jpg')[0]:.2f} nats per pixel")
heat = nextpixel.surprise(model, pictures / "cat.jpg")[0]
shade = (255 * heat / heat.max()).astype(np.uint8)
nextpixel.grid([np.repeat(shade[..., None], 3, axis=-1)], zoom=6)
