"""The model card: the README of a model on a hub."""

from __future__ import annotations

import json
import re
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from nextpixel.checkpoints.transformers import computes
from nextpixel.network.model import ImageGPT

# the folders of an absolute path within a sentence
ABSOLUTE = re.compile(r"(?<![\w.:/~-])(?:~|[A-Za-z]:)?[\\/](?:[^\\/\s]+[\\/])+(?=[^\\/\s])")
CARD = """---
library_name: {library}
tags:
- image-gpt
- nextpixel
pipeline_tag: {task}
---

# {name}

An Image GPT (Chen et al. 2020, "Generative Pretraining from Pixels"), {objective} objective.

| | |
|---|---|
| shape | {layers} layers, width {width}, {heads} heads, {parameters:,} parameters |
| pictures | {height} x {width_of_pictures}, {colors} {what} ({kind} sha256 `{hash}`) |
{made}

```python
import nextpixel

model = nextpixel.load({quoted})
{use}
```

{other}
Likelihoods compare only between models of the same {same}, and simple pictures always look likely. What the model
cannot do follows from what it was trained on, named above.
"""

CLASSIC = """The folder is also one that `transformers.ImageGPTForCausalImageModeling` opens. Feed it the start token
{start} and then all pixels but the last: transformers' image processor omits the start token.

"""


CLASSIFIER = """`nextpixel.save(model, "theirs", for_transformers=True)` makes a folder for
transformers' `ImageGPTForImageClassification`. Feed it the start token {start} and then all pixels but the last:
transformers' image processor omits the start token, which gives other logits.

"""


def model_card(model: ImageGPT, name: str) -> str:
    """The card in Markdown, with the front matter that hubs read."""
    config = model.config
    classic, of_colours = computes(model), model.tokenizer.patch == (1, 1)
    draws = config.objective == "autoregressive"
    other = CLASSIC.format(start=config.colors) if classic else ""
    use = 'halves = nextpixel.complete(model, "cat.png", keep=0.5, n=8)' if draws else "model.config"
    task = "unconditional-image-generation" if draws else "image-feature-extraction"
    if model.words is not None:
        use += f"\nfresh = nextpixel.sample(model, n=8, caption={json.dumps(model.words.table[0])}, guidance=2)"
        use += f"  # it knows {len(model.words):,} words: model.words.table"
        task = "text-to-image"
    if config.classes:
        use = 'names = nextpixel.LinearProbe.of(model).predict("photos/")'
        classes = ", ".join(map(_markdown, config.classes[:20])) + (", ..." if len(config.classes) > 20 else "")
        other = f"Its classes: {classes}. " + (CLASSIFIER.format(start=config.colors) if classic else "\n\n")
    facts = public(model.facts)
    made = [f"| {_markdown(key.replace('_', ' '))} | {_markdown(value)} |" for key, value in facts.items()]
    return CARD.format(
        library="transformers" if classic and not config.classes else "nextpixel",
        task="image-classification" if config.classes else task,
        name=_markdown(name),
        quoted=json.dumps(name),
        objective=config.objective,
        layers=config.layers,
        width=config.width,
        heads=config.heads,
        parameters=config.parameters,
        height=model.size[0],
        width_of_pictures=model.size[1],
        colors=config.colors,
        what="colours" if of_colours else "tokens",
        same="palette" if of_colours else "tokenizer",
        kind=model.tokenizer.kind,
        hash=model.tokenizer.hash[:16],
        made="\n".join(made) or "| made | not recorded |",
        use=use,
        other=other,
    )


def public(value: Any) -> Any:
    """The facts with absolute paths reduced to their last part, so that no folder of this machine is published."""
    if isinstance(value, dict):
        return {key: public(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [public(part) for part in value]
    if not isinstance(value, str):
        return value
    for kind in (PurePosixPath, PureWindowsPath):
        if value.startswith(("/", "~")) or (kind is PureWindowsPath and kind(value).is_absolute()):
            return kind(value).name
    return ABSOLUTE.sub("", value)


def _markdown(value: object) -> str:
    """Text on one line, escaped for a cell of a Markdown table."""
    return re.sub(r"([\\`*_{}\[\]<>|#!~&])", r"\\\1", " ".join(str(value).split()))
