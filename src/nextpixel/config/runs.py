"""What decides a training run; each kind records its own in run.json."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from nextpixel.config.keywords import Settings
from nextpixel.config.shapes import MODERN, SIZES, ImageGPTConfig
from nextpixel.config.terms import (
    Activation,
    Augment,
    Device,
    Fit,
    Levels,
    Objective,
    Positions,
    Preset,
    Switch,
    check_numbers,
)
from nextpixel.errors import InputError

MUON_RATE = 0.02  # of the modern preset's matrices; the rest of its parameters take a quarter of it

# Peak rates at batch 128. l and xl: Chen et al. 2020, Table 5; s: karpathy/minGPT's note of the same table.
# m is not confirmed by a primary source; xs and xxs follow s.
LEARNING_RATES: dict[str, float] = {
    "xxs": 0.003,
    "xs": 0.003,
    "s": 0.003,
    "m": 0.003,
    "l": 0.001,
    "xl": 0.0003,
}


INIT_RATE = 0.1  # continuing takes about a tenth of the rate of pretraining (Chen et al. 2020, section 3.4)


def peak_rate(parameters: int) -> float:
    """The published rate of the named size nearest in parameters."""
    name = min(SIZES, key=lambda size: abs(math.log(SIZES[size].parameters / parameters)))
    return LEARNING_RATES[name]


@dataclass(frozen=True)
class RunConfig(Settings):
    """What every kind of training run has; each records its own in run.json."""

    batch_images: int = 128
    """Images per optimiser step."""
    learning_rate: float | None = None
    """Peak rate; by the size of the network unless told."""
    warmup_steps: int | None = None
    """Linear warm-up; one epoch, but at most 5 % of the steps, unless told."""
    clip_norm: float = 0.0
    """Scale gradients down to this global norm; 0 leaves them alone, as in the paper."""
    fit: Fit | None = None
    """How pictures become squares. crop: shorter side to the side, then the centre; imagenet: the same at 224 and then
    down, the paper's evaluation; squash: no regard for proportions, as transformers does. The first, unless told or
    the model that it begins with brings another; kept with the model."""
    range: str | None = None
    """LOW,HIGH: which numbers are black and white where a format does not state it (more than 8 bits, floats, DICOM
    without a window); by default looked for over the images, and kept with the model."""
    bands: str | None = None
    """R,G,B: which bands are shown of pictures with more than three, counted from 1; by default the first three."""
    seed: int = 0
    """Fixes weights, order, crops, flips and what is held out."""

    validation_fraction: float = 0.1
    """Part of the training images held out to validate on."""
    checkpoint_every_steps: int = 1_000
    """Write a checkpoint this often."""
    checkpoint_every_minutes: float = 15.0
    """And at least this often; 0 leaves only the steps."""
    log_every_steps: int = 10
    """Steps between two lines of log.jsonl."""

    device: Device = "auto"
    """auto takes cuda, then mps, then cpu."""
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """Autocast type of the matrix products; auto takes bf16 where the hardware has it. Weights stay fp32."""
    threads: int | None = None
    """CPU threads; torch's choice unless told."""
    cache: str | None = None
    """Folder for decoded images and colour tables; the user's cache directory unless told."""
    tracker: Literal["wandb"] | None = None
    """Send the figures of log.jsonl there too (pip install wandb; WANDB_MODE=offline keeps them in the run folder).
    TensorBoard gets them where it is installed."""

    def __post_init__(self) -> None:
        check_numbers(
            self,
            at_least_one="batch_images checkpoint_every_steps log_every_steps threads",
            at_least_zero="warmup_steps clip_norm checkpoint_every_minutes seed",
        )
        if self.learning_rate is not None and not 0 < self.learning_rate < float("inf"):
            raise InputError(f"expected a number above 0, got {self.learning_rate}", argument="learning_rate")
        if not 0 < self.validation_fraction < 1:
            raise InputError(
                f"expected a number between 0 and 1, got {self.validation_fraction}", argument="validation_fraction"
            )
        Levels.of(self.range, self.bands)

    @property
    def levels(self) -> Levels:
        """What range and bands give."""
        return Levels.of(self.range, self.bands)


@dataclass(frozen=True)
class GPTRunConfig(RunConfig):
    """What every training run of an Image GPT has besides."""

    batch_images: int = 128
    """Images per optimiser step, over all processes."""
    micro_batch_images: int | None = None
    """Images per forward pass; chosen by memory unless told. Gradients add up to the full batch."""
    augment: Augment = "flip"
    """none; flip: mirror half of the images; crop: the paper's random crop; pad: reflect-pad and shift; pad-flip: both;
    orient: turn and mirror in all eight ways, and tell the network which."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the network block by block; auto does where it repays itself."""
    checkpoint_activations: bool = False
    """Recompute activations in the backward pass: less memory, a third more work."""
    shard: bool = False
    """Of several processes (torchrun): keep a part of weights, gradients and optimiser in each (FSDP) instead of a copy
    of all in every one."""
    timeout_minutes: float = 30.0
    """End all of several processes when one has not answered for this long; an evaluation must fit in."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, at_least_one="micro_batch_images")
        if not 0 < self.timeout_minutes < float("inf"):
            raise InputError(f"expected a number above 0, got {self.timeout_minutes}", argument="timeout_minutes")
        if self.micro_batch_images and self.batch_images % self.micro_batch_images:
            raise InputError(
                f"expected a divisor of `batch_images={self.batch_images}`, got {self.micro_batch_images}",
                argument="micro_batch_images",
            )


@dataclass(frozen=True)
class PretrainConfig(GPTRunConfig):
    """Everything that decides a pretraining run; recorded in its run.json."""

    size: Literal["xxs", "xs", "s", "m", "l", "xl"] | None = None
    """Named size, xs unless told; the three below change single dimensions of it."""
    layers: int | None = None
    """Transformer blocks, instead of the size's."""
    width: int | None = None
    """Width of the residual stream, instead of the size's."""
    heads: int | None = None
    """Attention heads, instead of the size's."""
    side: int | None = None
    """Pixels along each side; 32 unless told (with `init`: the model's own)."""
    palette: str | None = None
    """A palette.npy of your own; OpenAI's 512 colours unless told."""
    preset: Preset | None = None
    """classic, the default: the paper's network and recipe. modern: rotary positions on two axes, normalised queries
    and keys, squared ReLU, zero-initialised projections, capped logits, Muon, and a constant rate with a linear
    cool-down. With `init` that of the model."""
    positions: Positions | None = None
    """learned or rotary, instead of the preset's; so are the six below."""
    activation: Activation | None = None
    """quick-gelu or squared-relu."""
    qk_norm: Switch | None = None
    """Normalise queries and keys."""
    zero_projections: Switch | None = None
    """Begin with matrices of zeros where a block writes into the residual stream."""
    mix_input: Switch | None = None
    """Give each block a learned mix of the residual stream and the input."""
    logit_cap: float | None = None
    """Keep logits within this of 0; 0 leaves them alone."""
    init: str | None = None
    """Continue from this model (a folder, a run, a hub name, or "embedded") instead of random weights."""

    steps: int = 10_000
    """Optimiser steps in all."""
    optimizer: Literal["adam", "muon"] | None = None
    """adam, or muon: Muon for the blocks' matrices, Adam at a quarter of its rate for the rest. The preset's, unless
    told."""
    learning_rate: float | None = None
    """Peak rate; the size's own from Chen et al. 2020 unless told (muon: 0.02), and with `init` a tenth of that."""
    schedule: Literal["cosine", "linear"] | None = None
    """After the warm-up: a cosine to zero, or constant and then linearly to zero; the preset's unless told."""
    cooldown_fraction: float = 0.5
    """Part of the steps over which a linear schedule falls to zero."""
    objective: Objective | None = None
    """autoregressive: each pixel from those before it; masked: hidden pixels from all others (BERT). The first, unless
    told or `init` brings the other."""

    validation: str | None = None
    """Images to validate on; a held-out part of the training images unless told."""
    validation_images: int = 1_000
    """At most this many of them are scored at each evaluation."""
    evaluate_every_steps: int = 1_000
    """Score the validation images and draw samples this often (a checkpoint is written first)."""
    sample_images: int = 16
    """Pictures drawn at each evaluation; 0 draws none."""
    probe_data: str | None = None
    """Labelled images to probe with at evaluations: ridge regression on the middle layer's features, scored on a
    quarter of them that is held out. Give training images; test images are for the end."""
    probe_images: int = 2_000
    """At most this many of them, the same number of each class; kept in the run folder."""
    probe_every_evaluations: int = 1
    """Probe at one of so many evaluations, and at the last."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(
            self,
            at_least_one="layers width heads side steps validation_images evaluate_every_steps probe_images "
            "probe_every_evaluations",
            at_least_zero="sample_images",
        )
        if not 0 < self.cooldown_fraction <= 1:
            raise InputError(
                f"expected a number above 0 and at most 1, got {self.cooldown_fraction}", argument="cooldown_fraction"
            )
        own = "size layers width heads palette objective".split() + list(MODERN)
        brought = [name for name in own if getattr(self, name) is not None]
        if self.init and brought:
            raise InputError(
                f"brings its own shape, palette and objective; expected no `{brought[0]}` beside it", argument="init"
            )

    @property
    def chosen_optimizer(self) -> str:
        """The optimiser asked for, else the preset's."""
        return self.optimizer or ("muon" if self.preset == "modern" else "adam")

    @property
    def chosen_schedule(self) -> str:
        """The schedule asked for, else the preset's."""
        return self.schedule or ("linear" if self.preset == "modern" else "cosine")

    def model(self, colors: int) -> ImageGPTConfig:
        """The network of this run, for a palette of that many colours."""
        shape = SIZES[self.size or "xs"]
        switches = {"on": True, "off": False}
        given = {name: getattr(self, name) for name in MODERN if getattr(self, name) is not None}
        options = {name: switches.get(value, value) for name, value in given.items()}
        return ImageGPTConfig(
            **(MODERN if self.preset == "modern" else {}) | options,
            layers=self.layers or shape.layers,
            width=self.width or shape.width,
            heads=self.heads or shape.heads,
            side=self.side or shape.side,
            colors=colors,
            objective=self.objective or "autoregressive",
            orientations=8 if self.augment == "orient" else 1,
        )


@dataclass(frozen=True)
class FinetuneConfig(GPTRunConfig):
    """Everything that decides a fine-tuning run; recorded in its run.json."""

    epochs: int = 30
    """At most this many times through the training images."""
    patience: int = 5
    """Stop after this many evaluations without a better validation accuracy."""
    evaluate_every_epochs: int = 1
    """Validate this often (a checkpoint is written first)."""
    learning_rate: float | None = None
    """Rate, constant after the warm-up; a tenth of the size's own for pretraining unless told. Few images want more."""
    augment: Augment = "pad-flip"
    """none; flip: mirror half of the images; crop: the paper's random crop; pad: reflect-pad and shift; pad-flip:
    both."""
    batch_images: int = 32
    """Images per optimiser step, over all processes."""
    labels_per_class: int | None = None
    """Use only this many training images of each class, drawn by the seed as probe draws its first subset."""
    freeze_trunk: bool = False
    """Train the class head alone, without the generative loss."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.augment == "orient":
            raise InputError(
                "expected none, flip, crop, pad or pad-flip to learn classes by, got orient", argument="augment"
            )
        check_numbers(self, at_least_one="epochs patience evaluate_every_epochs labels_per_class")


@dataclass(frozen=True)
class DistillConfig(RunConfig):
    """Everything that decides a distillation; recorded in its run.json."""

    layer: str = "middle"
    """Whose features the student learns: middle, a number, or numbers with commas to concatenate. A probe's sweep tells
    the best one, which needs labels."""
    loss: Literal["cosine", "squared"] = "cosine"
    """Of the angle between predicted and whitened features, or of their squared difference."""
    shrinkage: float = 0.1
    """Part of their mean variance mixed into the features' covariance before it is whitened."""
    blocks: int = 3
    """Blocks of each of the student's three stages; 3 make a ResNet-20."""
    factor: int = 1
    """Times 16, 32 and 64 channels."""
    augment: Literal["none", "flip", "pad", "pad-flip"] = "pad-flip"
    """flip: mirror half of the images; pad: reflect-pad and shift; pad-flip: both. The teacher looks at mirrored images
    only where the student does."""
    steps: int = 2_000
    """Optimiser steps in all."""
    learning_rate: float = 0.1
    """Peak rate; after the warm-up a cosine falls to zero."""
    warmup_steps: int | None = None
    """Linear warm-up; a twentieth of the steps unless told."""
    weight_decay: float = 5e-4
    """Of weights; gains, biases and norms do not decay."""
    validation_fraction: float = 0.05
    """Part of the images held out to tell how well the features are predicted."""
    evaluate_every_steps: int = 500
    """Score the held-out images this often (a checkpoint is written first)."""
    checkpoint_every_steps: int = 500
    """Write a checkpoint this often."""
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """Autocast type of the student's matrix products; auto takes bf16 where the hardware has it. The teacher looks in
    fp32, unless bf16 is told."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, at_least_one="blocks factor steps evaluate_every_steps", at_least_zero="weight_decay")
        if not 0 < self.shrinkage <= 1:
            raise InputError(f"expected a number above 0 and at most 1, got {self.shrinkage}", argument="shrinkage")
        words = self.layer.split(",")
        if self.layer != "middle" and not all(word.strip().isdecimal() for word in words):
            raise InputError(
                f"expected middle, a number, or numbers with commas between, got {self.layer!r}", argument="layer"
            )
