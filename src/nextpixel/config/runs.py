"""Settings of training runs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from nextpixel.config.settings import Settings
from nextpixel.config.shapes import MODERN, SIZES, ImageGPTConfig, PretrainSize, shape_of
from nextpixel.config.terms import (
    Activation,
    Anchor,
    Device,
    Fit,
    Levels,
    Objective,
    Positions,
    Preset,
    Size,
    Switch,
    augmentations,
    check_numbers,
    side_text,
    to_side,
    to_size,
)
from nextpixel.errors import InputError

MUON_RATE = 0.02  # for the matrices of the modern preset; its other parameters use a quarter of it

# Peak rates at batch 128. l and xl: Chen et al. 2020, Table 5; s: karpathy/minGPT's note of the same table; m is not
# confirmed by a primary source.
PUBLISHED_RATES = {"s": 0.003, "m": 0.003, "l": 0.001, "xl": 0.0003}
EXACT = "exact"  # the palette of the images' own colours
WORDS = 1_000  # of captions, at most
INIT_RATE = 0.1  # of the pretraining rate, for continued training (Chen et al. 2020, section 3.4)


def peak_rate(parameters: int) -> float:
    """The learning rate published for the size closest in number of parameters."""
    name = min(PUBLISHED_RATES, key=lambda size: abs(math.log(SIZES[size].parameters / parameters)))
    return PUBLISHED_RATES[name]


@dataclass(frozen=True)
class RunConfig(Settings):
    """Settings of every training run; recorded in its run.json."""

    batch_images: int = 128
    """Images per optimiser step, over all processes."""
    learning_rate: float | None = None
    """Peak learning rate; default: by the size of the network."""
    warmup_steps: int | None = None
    """Steps of linear warm-up; default: one epoch, at most 5% of all steps."""
    clip_norm: float = 0.0
    """Maximum global norm of the gradient; 0: no clipping, as in the paper."""
    fit: Fit | None = None
    """How pictures get the size of the model; saved with it. crop: resize the shorter side, then crop the centre;
    imagenet: the same at 224 pixels, then downsample, as the paper evaluates; squash: resize without keeping the
    proportions, as transformers does; place: put pixel art on the canvas with its exact colours and transparency,
    never resized. Default: that of the initial model, or place for exact palettes, else crop."""
    range: str | None = None
    """LOW,HIGH: the values shown as black and white where the format does not define them (more than 8 bits, floats,
    DICOM without a window); default: the range of the images. Saved with the model."""
    bands: str | None = None
    """R,G,B: the bands to use of pictures with more than three, counted from 1; default: the first three."""
    anchor: Anchor | None = None
    """Where on the canvas `fit=place` puts smaller pictures; default: center. bottom suits sprites that stand."""
    slice: int | Size | None = None
    """Rows x columns of pixels of the tiles that sheets are cut into, as in 16x16, with `fit=place`."""
    scale: int | None = None
    """The factor by which pixel art is enlarged in its files, undone with `fit=place`; default: that common to all."""
    seed: int = 0
    """Random seed of weights, order, crops, flips and the held-out images."""

    validation_fraction: float = 0.1
    """Fraction of the training images held out for validation."""
    checkpoint_every_steps: int = 1_000
    """Steps between checkpoints."""
    checkpoint_every_minutes: float = 15.0
    """Minutes after which a checkpoint is also written; 0: only by steps."""
    log_every_steps: int = 10
    """Steps between lines of log.jsonl."""

    device: Device = "auto"
    """auto: cuda if available, else mps, else cpu."""
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """Autocast type of matrix products; auto: bf16 where the hardware supports it. Weights stay fp32."""
    threads: int | None = None
    """CPU threads; default: torch's choice."""
    cache: str | None = None
    """Folder for decoded images, their tokens and colour tables; default: the user's cache folder."""
    tracker: Literal["wandb"] | None = None
    """Also log to Weights & Biases (pip install wandb; WANDB_MODE=offline logs to the run folder). TensorBoard logs are
    written if it is installed."""

    def __post_init__(self) -> None:
        check_numbers(
            self,
            at_least_one="batch_images checkpoint_every_steps log_every_steps threads",
            at_least_zero="warmup_steps clip_norm checkpoint_every_minutes",
            seed="seed",
            above_zero="learning_rate",
            fraction="validation_fraction",
        )
        Levels.among(vars(self))

    @property
    def levels(self) -> Levels:
        """`range`, `bands`, `anchor`, `slice` and `scale`, parsed."""
        return Levels.among(vars(self))


@dataclass(frozen=True)
class GPTRunConfig(RunConfig):
    """Settings of every training run of an Image GPT."""

    micro_batch_images: int | None = None
    """Images per forward pass; gradients are accumulated over the batch. Default: as many as fit into memory."""
    augment: str = "flip"
    """none, or several, separated by commas. flip: mirror half of the images; crop: the paper's random crop; pad:
    reflect-pad and shift (pad-flip: pad,flip); orient: rotate and mirror in all eight ways, with the orientation as an
    input of the network; shift: move within the transparent margin; wrap: shift what leaves on one side in on the
    other, for textures that repeat; recolour: give half of the images the colours of others, ramp by ramp."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the network block by block; auto: where the run is long enough to gain from it."""
    checkpoint_activations: bool = False
    """Recompute activations in the backward pass: less memory, a third more computation."""
    shard: bool = False
    """With torchrun: shard weights, gradients and optimiser state over the processes (FSDP) instead of replicating
    them (DDP)."""
    timeout_minutes: float = 30.0
    """With torchrun: stop all processes when one has not answered for this long; must exceed an evaluation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, at_least_one="micro_batch_images", above_zero="timeout_minutes")
        augmentations(self.augment)
        if self.micro_batch_images and self.batch_images % self.micro_batch_images:
            raise InputError(
                f"expected a divisor of `batch_images={self.batch_images}`, got {self.micro_batch_images}",
                argument="micro_batch_images",
            )


@dataclass(frozen=True)
class PretrainConfig(GPTRunConfig):
    """Settings of a pretraining run; recorded in its run.json."""

    size: PretrainSize | None = None
    """Named size (default: xs), or auto: by the number of images, at most xxs; the next three options override its
    dimensions."""
    layers: int | None = None
    """Number of transformer blocks."""
    width: int | None = None
    """Width of the residual stream."""
    heads: int | None = None
    """Number of attention heads."""
    side: int | Size | None = None
    """Pixels along each side, or rows x columns as in 24x16; default: 32, with exact colours the size of the largest
    picture up to 32, with `init` that of the model, with `tokenizer` that to which it was fitted."""
    palette: str | None = None
    """A palette.npy file, exact (the RGBA colours of the images, at most 1,024, kept exactly), or a .gpl, .hex, .pal or
    .png palette, also kept exactly; default: OpenAI's 512 colours."""
    tokenizer: str | None = None
    """The folder of a tokenizer whose tokens are patches of pixels, see nextpixel tokenizer, instead of a palette. With
    `init` it takes the place of the model's own: each token begins as the mean of those for the same patches."""
    preset: Preset | None = None
    """classic: the paper's network and recipe. modern: 2D rotary positions, normalised queries and keys, squared ReLU,
    zero-initialised projections, capped logits, Muon, and a constant learning rate with a linear cool-down. Default:
    classic, or with `init` that of the model."""
    positions: Positions | None = None
    """Position encoding; this option and the next five override the preset."""
    activation: Activation | None = None
    """Activation of the MLP."""
    qk_norm: Switch | None = None
    """Normalise queries and keys."""
    zero_projections: Switch | None = None
    """Initialise the matrices that write into the residual stream with zeros."""
    mix_input: Switch | None = None
    """Feed each block a learned mix of the residual stream and the network's input."""
    logit_cap: float | None = None
    """Soft cap of the logits' absolute value; 0: none."""
    init: str | None = None
    """Initial model (a folder, a run, a hub name or a bundled model) instead of random weights."""

    steps: int = 10_000
    """Total number of optimiser steps."""
    optimizer: Literal["adam", "muon"] | None = None
    """adam, or muon: Muon for the matrices of the blocks, Adam at a quarter of its rate for the rest; default: that of
    the preset."""
    learning_rate: float | None = None
    """Peak learning rate; default: by size from Chen et al. 2020 (muon: 0.02), with `init` a tenth of that."""
    schedule: Literal["cosine", "linear"] | None = None
    """After the warm-up: cosine decay, or constant with a linear decay at the end; default: that of the preset."""
    cooldown_fraction: float = 0.5
    """Fraction of the steps over which a linear schedule decays."""
    objective: Objective | None = None
    """autoregressive: predict each pixel from those before it; masked: predict hidden pixels from the others (BERT).
    Default: autoregressive, or with `init` that of the model."""

    captions: str | None = None
    """Train with captions: names (red_potion_01.png), folders, a .csv or .jsonl file of file,caption (and
    row,column for the tiles of a sheet), or the name of a text column (parquet, hub), of a shard sample's member or of
    the files beside the pictures (txt)."""
    words: int | None = None
    """Maximum number of different words in captions, the most frequent; others, and those in fewer than 3 captions, are
    left out. Default: 1,000, or the words of the model of `init`, if it has any."""

    validation: str | None = None
    """Validation images; default: a held-out part of the training images."""
    validation_images: int = 1_000
    """Maximum number of images scored at each evaluation."""
    evaluate_every_steps: int = 1_000
    """Steps between evaluations, which score the validation images and draw samples; a checkpoint is written first."""
    patience: int | None = None
    """Stop after this many evaluations without an improvement of the validation nats; default: train all steps."""
    sample_images: int = 16
    """Pictures drawn at each evaluation; 0: none."""
    probe_data: str | None = None
    """Labelled images for a probe at evaluations: ridge regression on the middle layer's features, scored on a
    held-out quarter. Use training images; keep test images for the end."""
    probe_images: int = 2_000
    """Maximum number of probe images, equally many per class; copied into the run folder."""
    probe_every_evaluations: int = 1
    """Evaluations between probes; the one after the last step always probes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(
            self,
            at_least_one="layers width heads words steps validation_images evaluate_every_steps patience probe_images "
            "probe_every_evaluations",
            at_least_zero="sample_images",
            share="cooldown_fraction",
        )
        if self.side is not None:
            size = to_size(self.side)
            object.__setattr__(self, "side", to_side(size))  # a list if read from JSON
            if "orient" in augmentations(self.augment) and size[0] != size[1]:
                raise InputError(
                    f"orient rotates by quarter turns, for square pictures only, got {size[0]} x {size[1]}; use flip",
                    argument="augment",
                )
        if "orient" in augmentations(self.augment) and self.objective == "masked":
            raise InputError(
                "orient needs the start vector, which masked models do not have; use flip", argument="augment"
            )
        fixed = "size layers width heads palette objective".split() + list(MODERN)
        given = [name for name in fixed if getattr(self, name) is not None]
        if self.init and given:
            raise InputError(
                f"cannot be combined with `{given[0]}={getattr(self, given[0])}`, given or from the recipe: the model "
                "has its own shape, colours and objective; a recipe's other settings can be given as options",
                argument="init",
            )
        if self.captions is not None and self.objective == "masked":
            raise InputError("expected none, as a masked model has no prefix for them", argument="captions")
        if self.words is not None and self.captions is None:
            raise InputError("has no effect without `captions`", argument="words")
        if self.palette and self.tokenizer:
            raise InputError("cannot be combined with `palette`: it has its own colours", argument="tokenizer")

    @property
    def chosen_optimizer(self) -> str:
        """`optimizer`, or that of the preset."""
        return self.optimizer or ("muon" if self.preset == "modern" else "adam")

    @property
    def chosen_schedule(self) -> str:
        """`schedule`, or that of the preset."""
        return self.schedule or ("linear" if self.preset == "modern" else "cosine")

    def model(self, colors: int, images: int | None = None, patch: Size = (1, 1)) -> ImageGPTConfig:
        """The network of this run, for this many tokens of `patch` pixels and, for size auto, this many images.

        Raises InputError where the pictures cannot be cut into patches.
        """
        shape = shape_of(self.size or "xs", images)
        switches = {"on": True, "off": False}
        given = {name: getattr(self, name) for name in MODERN if getattr(self, name) is not None}
        options = {name: switches.get(value, value) for name, value in given.items()}
        return ImageGPTConfig(
            **(MODERN if self.preset == "modern" else {}) | options,
            layers=self.layers or shape.layers,
            width=self.width or shape.width,
            heads=self.heads or shape.heads,
            side=self._grid(to_size(self.side or shape.side), patch),
            colors=colors,
            objective=self.objective or "autoregressive",
            orientations=8 if "orient" in augmentations(self.augment) else 1,
        )

    @staticmethod
    def _grid(size: Size, patch: Size) -> Size:
        """Rows and columns of the tokens of a picture."""
        if size[0] % patch[0] or size[1] % patch[1]:
            raise InputError(
                f"expected multiples of {side_text(patch)}, the pixels of a token, got {side_text(size)}",
                argument="side",
            )
        return size[0] // patch[0], size[1] // patch[1]


@dataclass(frozen=True)
class FinetuneConfig(GPTRunConfig):
    """Settings of a fine-tuning run; recorded in its run.json."""

    epochs: int = 10
    """Maximum passes over the training images."""
    patience: int = 10
    """Stop after this many passes without an improvement of the validation accuracy."""
    head: Literal["best", "last"] = "best"
    """What the class head reads. best: the layer and pooling that the best linear probe of the training images reads;
    last: the mean of the last layer, as in the paper and in transformers."""
    learning_rate: float | None = None
    """Peak learning rate; after the warm-up it falls linearly to zero. Default: 0.003, for networks wider than
    256 in inverse proportion to the width."""
    clip_norm: float = 1.0
    """Maximum global norm of the gradient; 0: no clipping, as in the paper."""
    augment: str = "pad-flip"
    """none, or several of flip, crop, pad, shift, wrap and recolour, separated by commas; see pretrain."""
    batch_images: int = 32
    """Images per optimiser step, over all processes."""
    labels_per_class: int | None = None
    """Use only this many training images per class: with the same seed, the first subset of nextpixel probe."""
    freeze_trunk: bool = False
    """Train only the class head, without the generative loss."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if "orient" in augmentations(self.augment):
            raise InputError("expected others, such as flip, crop, pad or pad-flip, got orient", argument="augment")
        check_numbers(self, at_least_one="epochs patience labels_per_class")


@dataclass(frozen=True)
class DistillConfig(RunConfig):
    """Settings of a distillation; recorded in its run.json."""

    layer: str = "middle"
    """Teacher layer whose features the student predicts: middle, a number, or comma-separated numbers to concatenate.
    With labels, nextpixel probe finds the best layer."""
    loss: Literal["cosine", "squared"] = "cosine"
    """Cosine or squared distance between predicted and whitened features."""
    shrinkage: float = 0.1
    """Shrinkage of the features' covariance toward its mean variance, before whitening."""
    blocks: int = 3
    """Blocks in each of the student's three stages; 3 make a ResNet-20."""
    factor: int = 1
    """Width multiplier; 1 means 16, 32 and 64 channels."""
    augment: Literal["none", "flip", "pad", "pad-flip"] = "pad-flip"
    """flip: mirror half of the images; pad: reflect-pad and shift; pad-flip: both. The teacher sees mirrored images
    only if the student does."""
    steps: int = 2_000
    """Total number of optimiser steps."""
    learning_rate: float = 0.1
    """Peak learning rate; cosine decay after the warm-up."""
    warmup_steps: int | None = None
    """Steps of linear warm-up; default: a twentieth of all steps."""
    weight_decay: float = 5e-4
    """Weight decay; not applied to gains, biases and norms."""
    validation_fraction: float = 0.05
    """Fraction of the images held out to measure how well the features are predicted."""
    evaluate_every_steps: int = 500
    """Steps between evaluations on the held-out images; a checkpoint is written first."""
    checkpoint_every_steps: int = 500
    """Steps between checkpoints."""
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """Autocast type of the student's matrix products; auto: bf16 where the hardware supports it. The teacher runs in
    fp32 except with bf16."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(
            self,
            at_least_one="blocks factor steps evaluate_every_steps",
            at_least_zero="weight_decay",
            share="shrinkage",
        )
        words = self.layer.split(",")
        if self.layer != "middle" and not all(word.strip().isdecimal() for word in words):
            raise InputError(
                f"expected middle, a number, or comma-separated numbers, got {self.layer!r}", argument="layer"
            )


@dataclass(frozen=True)
class CodecConfig(RunConfig):
    """Settings of the training of a learned tokenizer; recorded in its run.json."""

    patch: int = 4
    """Pixels along each side of a patch: 2 or 4."""
    codes: int = 4_096
    """Size of the vocabulary, up to 16,384; with `kind=learned` 1000, 4096 or 16384."""
    side: int | Size = 64
    """Side that images are resized to, or rows x columns as in 48x64; multiples of the patch."""
    width: int = 128
    """Channels of the codec; even, at most 512."""
    blocks: int = 4
    """Residual blocks of its decoder at one position a token; even, at most 8. With patches of 4, half as many follow
    at twice the resolution."""
    steps: int = 10_000
    """Total number of optimiser steps."""
    batch_images: int = 32
    """Images per optimiser step."""
    learning_rate: float = 0.02
    """Peak learning rate of Muon, for the convolutions of the blocks; Adam has a tenth of it for the rest. Constant
    after the warm-up, then linear to zero over the second half."""
    warmup_steps: int | None = None
    """Steps of linear warm-up; default: 50."""
    evaluate_every_steps: int = 1_000
    """Steps between evaluations on the held-out images; a checkpoint is written first."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, at_least_one="patch codes width blocks steps evaluate_every_steps")
        object.__setattr__(self, "side", to_side(to_size(self.side)))  # a list if read from JSON
        if self.patch not in (2, 4):
            raise InputError(f"expected 2 or 4, got {self.patch}", argument="patch")
        if not 2 <= self.codes <= 16_384:
            raise InputError(f"expected 2 to 16384, got {self.codes}", argument="codes")
        if self.fit == "place":
            raise InputError("expected crop, imagenet or squash, got place", argument="fit")
        if self.size[0] % self.patch or self.size[1] % self.patch:
            raise InputError(f"expected multiples of {self.patch}, got {side_text(self.size)}", argument="side")

    @property
    def size(self) -> Size:
        """Height and width of the pictures, in pixels."""
        return to_size(self.side)
