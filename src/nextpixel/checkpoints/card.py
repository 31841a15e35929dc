"""The README of a model that goes to a hub: what it is, what made it, how to use it."""

from __future__ import annotations

from nextpixel.model import ImageGPT

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
| pictures | {rows} x {columns}, {colors} {what} ({kind} sha256 `{hash}`) |
{made}

```python
import nextpixel

model = nextpixel.load("{name}")
{use}
```

{other}
Likelihoods compare only between models of the same palette, and simple pictures always look likely. What the model
cannot do follows from what it was trained on, named above.
"""

CLASSIC = """The folder is also one that `transformers.ImageGPTForCausalImageModeling` opens. Feed it the start token
{start} and then all pixels but the last: its own image processor returns pixels without a start token.

"""


CLASSIFIER = """It tells apart: {classes}. `nextpixel.save(model, "theirs", for_transformers=True)` makes a folder for
transformers' `ImageGPTForImageClassification`. Feed that one the start token {start} and then all pixels but the last:
its own image processor feeds the pixels themselves, without the start token, and that gives other logits.

"""


def model_card(model: ImageGPT, name: str) -> str:
    """Markdown, with the front matter that hubs read."""
    config = model.config
    classic = config.is_classic
    draws = config.objective == "autoregressive"
    other = CLASSIC.format(start=config.colors) if classic else ""
    use = 'halves = nextpixel.complete(model, "cat.png", keep=0.5, n=8)' if draws else "model.config"
    if config.classes:
        use = 'names = nextpixel.LinearProbe.of(model).predict("photos/")'
        classes = ", ".join(config.classes[:20]) + (", ..." if len(config.classes) > 20 else "")
        other = CLASSIFIER.format(classes=classes, name=name, start=config.colors) if classic else ""
    made = [f"| {key.replace('_', ' ')} | {value} |" for key, value in model.facts.items()]
    return CARD.format(
        library="transformers" if classic and not config.classes else "nextpixel",
        task="image-classification" if config.classes else "unconditional-image-generation",
        name=name,
        objective=config.objective,
        layers=config.layers,
        width=config.width,
        heads=config.heads,
        parameters=config.parameters,
        rows=config.rows,
        columns=config.columns,
        colors=config.colors,
        what="colours" if model.tokenizer.patch == (1, 1) else "tokens",
        kind=model.tokenizer.kind,
        hash=model.tokenizer.hash[:16],
        made="\n".join(made) or "| made | not recorded |",
        use=use,
        other=other,
    )
