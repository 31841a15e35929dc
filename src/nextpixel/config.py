"""What a model and a run are made of: frozen dataclasses, named sizes, defaults and help texts. No torch.

The text under a field is its help on the command line; defaults live here and nowhere else.
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from nextpixel.errors import InputError

Device = Literal["auto", "cpu", "cuda", "mps"]
Augment = Literal["none", "flip", "crop", "pad", "pad-flip", "orient"]
KeepSide = Literal["top", "right", "bottom", "left"]
Fit = Literal["crop", "imagenet", "squash"]
Objective = Literal["autoregressive", "masked"]
Positions = Literal["learned", "rotary"]
Activation = Literal["quick-gelu", "squared-relu"]
Preset = Literal["classic", "modern"]
Switch = Literal["on", "off"]
Speed = Literal["auto", "exact"]
Pooling = Literal["mean", "mean-std"]


@dataclass(frozen=True)
class ImageGPTConfig:
    """The shape of a network. Names as in the legend of model.py."""

    layers: int = 24
    """Transformer blocks (L)."""
    width: int = 512
    """Width of the residual stream (D)."""
    heads: int = 8
    """Attention heads (N); each is width / heads wide."""
    side: int = 32
    """Pixels along each side of the picture; the sequence is side * side long."""
    colors: int = 512
    """Colours in the palette (K)."""
    objective: Objective = "autoregressive"
    """Each pixel from those before it, or hidden pixels from all others (BERT)."""
    orientations: int = 1
    """Rows of the start table: 1, or 8, one for each way to turn and mirror the square, which tells the network how the
    picture lies."""
    classes: tuple[str, ...] = ()
    """Names that a class head tells apart; none without such a head."""

    # What follows is not in the paper; as it stands here, it is the paper's network.
    positions: Positions = "learned"
    """A learned vector added per position, or queries and keys rotated by row and column."""
    activation: Activation = "quick-gelu"
    """Between the two matrices of the MLP."""
    qk_norm: bool = False
    """Queries and keys are normalised head by head."""
    zero_projections: bool = False
    """The matrices that write into the residual stream begin at zero."""
    mix_input: bool = False
    """Each block reads a learned mix of the residual stream and the network's normalised input."""
    logit_cap: float = 0.0
    """Logits are bent to stay within this of 0; 0 leaves them alone."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(self.classes))  # JSON knows lists alone
        names = set(self.classes)
        if len(names) != len(self.classes) or len(names) == 1 or not all(isinstance(name, str) for name in names):
            raise InputError(f"classes: expected no names or at least two different ones, got {list(self.classes)!r}")
        for name, kind in (("objective", Objective), ("positions", Positions), ("activation", Activation)):
            if getattr(self, name) not in get_args(kind):
                raise InputError(f"{name}: expected {' or '.join(get_args(kind))}, got {getattr(self, name)!r}")
        if self.orientations not in (1, 8) or (self.orientations == 8 and self.objective == "masked"):
            raise InputError(
                f"orientations: expected 1, or 8 for an autoregressive model, got {self.orientations!r} "
                f"({self.objective})"
            )
        for name in ("qk_norm", "zero_projections", "mix_input"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name}: expected true or false, got {getattr(self, name)!r}")
        if not isinstance(self.logit_cap, int | float) or not 0 <= self.logit_cap < float("inf"):
            raise InputError(f"logit_cap: expected a number of 0 or more, got {self.logit_cap!r}")
        for field in dataclasses.fields(self)[:5]:
            value = getattr(self, field.name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(f"{field.name}: expected a whole number of at least 1, got {value!r}")
        if self.width % self.heads:
            raise InputError(
                f"width must be a multiple of heads, got width {self.width} and heads {self.heads}; "
                f"try heads {max(h for h in range(1, self.heads + 1) if self.width % h == 0)}"
            )
        if self.positions == "rotary" and self.head_width % 4:
            raise InputError(
                f"rotary positions need heads whose width is a multiple of 4, got {self.head_width} "
                f"(width {self.width}, heads {self.heads})"
            )

    @property
    def pixels(self) -> int:
        """Length of the sequence (T)."""
        return self.side * self.side

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def block_matrix_parameters(self) -> int:
        """Of a block's matrices: queries, keys and values, the projection, and the MLP, four times as wide."""
        return 12 * self.width**2

    @property
    def parameters(self) -> int:
        """Exact number of parameters; Chen et al. 2020 count their sizes the same way at 32 x 32."""
        width, layers = self.width, self.layers
        start = width * self.orientations if self.objective == "autoregressive" else 0
        positions = self.pixels * width if self.positions == "learned" else 0
        embeddings = positions + 2 * self.colors * width + start
        block = self.block_matrix_parameters + 2 * width + (2 if self.mix_input else 0)
        return embeddings + layers * block + width + len(self.classes) * width

    @property
    def is_classic(self) -> bool:
        """Whether this is the autoregressive network of the paper, with a class head or without one."""
        paper = ImageGPTConfig(self.layers, self.width, self.heads, self.side, self.colors, classes=self.classes)
        return self == paper


@dataclass(frozen=True)
class ResNetConfig:
    """The shape of a small residual network (He et al. 2016, section 4.2); ResNet-20 unless told."""

    blocks: int = 3
    """Blocks of each of the three stages (n); 6 n + 2 weighted layers."""
    factor: int = 1
    """Times 16, 32 and 64 channels."""
    side: int = 32
    """Pixels along each side of the picture."""
    classes: int = 0
    """Outputs of its head (C); 0 for none."""
    targets: int = 0
    """Features of a teacher that it was trained to predict; 0 for none."""

    def __post_init__(self) -> None:
        for name, least in {"blocks": 1, "factor": 1, "side": 1, "classes": 0, "targets": 0}.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise InputError(f"{name}: expected a whole number of at least {least}, got {value!r}")

    @property
    def width(self) -> int:
        """Pooled features (D)."""
        return 64 * self.factor

    @property
    def layers(self) -> int:
        """The number of the last layer that can be probed; there is one, the pooled features, and it is layer 0."""
        return 0

    @property
    def parameters(self) -> int:
        """Exact number of parameters; 269,722 for ResNet-20 with ten classes."""
        total, before = 27 * 16 * self.factor + 2 * 16 * self.factor, 16 * self.factor
        for channels in (16 * self.factor, 32 * self.factor, 64 * self.factor):
            total += 9 * channels * (before + (2 * self.blocks - 1) * channels) + 4 * self.blocks * channels
            before = channels
        heads = sum((self.width + 1) * outputs for outputs in (self.classes, self.targets))
        return total + heads


# Chen et al. 2020, section 3.3; heads from the commands of openai/image-gpt. The heads of XL were never
# published: 24 of width 128 are our choice. xs and xxs are ours, for laptops.
SIZES: dict[str, ImageGPTConfig] = {
    "xxs": ImageGPTConfig(layers=6, width=192, heads=6),
    "xs": ImageGPTConfig(layers=8, width=256, heads=8),
    "s": ImageGPTConfig(layers=24, width=512, heads=8),
    "m": ImageGPTConfig(layers=36, width=1024, heads=8),
    "l": ImageGPTConfig(layers=48, width=1536, heads=16),
    "xl": ImageGPTConfig(layers=60, width=3072, heads=24),
}

# The network of --preset modern; each part is weighed in docs/results.md.
MODERN: dict[str, Any] = {
    "positions": "rotary",  # Su et al. 2021, on two axes as in vision transformers
    "activation": "squared-relu",  # So et al. 2021
    "qk_norm": True,  # Henry et al. 2020
    "zero_projections": True,  # Zhang et al. 2019
    "mix_input": True,  # from the modded-nanogpt speedruns
    "logit_cap": 15.0,  # Gemma 2, 2024
}
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
class RunConfig:
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
            raise InputError(f"--learning-rate: expected a number above 0, got {self.learning_rate}")
        if not 0 < self.validation_fraction < 1:
            raise InputError(
                f"--validation-fraction: expected a number between 0 and 1, got {self.validation_fraction}"
            )


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
            raise InputError(f"--timeout-minutes: expected a number above 0, got {self.timeout_minutes}")
        if self.micro_batch_images and self.batch_images % self.micro_batch_images:
            raise InputError(
                f"--micro-batch-images: expected a divisor of --batch-images {self.batch_images}, "
                f"got {self.micro_batch_images}"
            )


def check_numbers(config: Any, at_least_one: str, at_least_zero: str = "") -> None:
    """Raises InputError for a field among these names that is set and too small."""
    for name in at_least_one.split():
        value = getattr(config, name)
        if value is not None and value < 1:
            raise InputError(f"{flag(name)}: expected at least 1, got {value}")
    for name in at_least_zero.split():
        value = getattr(config, name)
        if value is not None and not value >= 0:
            raise InputError(f"{flag(name)}: expected 0 or more, got {value}")


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
    """Pixels along each side; 32 unless told (with --init: the model's own)."""
    palette: str | None = None
    """A palette.npy of your own; OpenAI's 512 colours unless told."""
    preset: Preset | None = None
    """classic, the default: the paper's network and recipe. modern: rotary positions on two axes, normalised queries
    and keys, squared ReLU, zero-initialised projections, capped logits, Muon, and a constant rate with a linear
    cool-down. With --init that of the model."""
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
    """Peak rate; the size's own from Chen et al. 2020 unless told (muon: 0.02), and with --init a tenth of that."""
    schedule: Literal["cosine", "linear"] | None = None
    """After the warm-up: a cosine to zero, or constant and then linearly to zero; the preset's unless told."""
    cooldown_fraction: float = 0.5
    """Part of the steps over which a linear schedule falls to zero."""
    objective: Objective | None = None
    """autoregressive: each pixel from those before it; masked: hidden pixels from all others (BERT). The first, unless
    told or --init brings the other."""

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
                f"--cooldown-fraction: expected a number above 0 and at most 1, got {self.cooldown_fraction}"
            )
        own = "size layers width heads palette objective".split() + list(MODERN)
        brought = [name for name in own if getattr(self, name) is not None]
        if self.init and brought:
            raise InputError(
                f"--init brings its own shape, palette and objective; expected no {flag(brought[0])} beside it"
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
            raise InputError("--augment: expected none, flip, crop, pad or pad-flip to learn classes by, got orient")
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
            raise InputError(f"--shrinkage: expected a number above 0 and at most 1, got {self.shrinkage}")
        words = self.layer.split(",")
        if self.layer != "middle" and not all(word.strip().isdecimal() for word in words):
            raise InputError(f"--layer: expected middle, a number, or numbers with commas between, got {self.layer!r}")


@dataclass(frozen=True)
class SamplingConfig:
    """How the next colour is chosen."""

    temperature: float = 1.0
    """Divides the logits; 1 draws from the model's own distribution, 0 always takes the likeliest colour."""
    top_k: int | None = None
    """Keep only this many likeliest colours."""
    top_p: float | None = None
    """Keep the likeliest colours that together hold this much probability."""
    seed: int = 0
    """Fixes the draw; the noise depends on seed, picture, completion and pixel alone."""
    speed: Speed = "auto"
    """exact: the network as it is, and a seed's picture is the same whatever is drawn with it; auto: where it pays,
    weights and cache rounded to int8, which keeps the distribution but not the pixels of a seed."""

    def __post_init__(self) -> None:
        if self.speed not in ("auto", "exact"):
            raise InputError(f"--speed: expected auto or exact, got {self.speed!r}")
        if not 0 <= self.temperature < float("inf"):
            raise InputError(f"--temperature: expected a number of 0 or more, got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"--top-k: expected at least 1, got {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InputError(f"--top-p: expected a number above 0 and at most 1, got {self.top_p}")
        if self.seed < 0:
            raise InputError(f"--seed: expected 0 or more, got {self.seed}")


@dataclass(frozen=True)
class ModelOptions:
    """Which model works, and on what."""

    model: str | None = None
    """A checkpoint folder, a run folder or a hub name; the embedded model unless told."""
    fit: Fit | None = None
    """How pictures become squares, as pretrain --help tells; the model's own way unless told."""
    device: Device = "auto"
    """auto takes cuda, then mps, then cpu."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Type of the weights: bf16 halves the memory and is coarser."""
    threads: int | None = None
    """CPU threads; torch's choice unless told."""

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise InputError(f"--threads: expected at least 1, got {self.threads}")


@dataclass(frozen=True)
class ServeConfig:
    """Where a server listens, and its limits."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets other machines in."""
    port: int = 8000
    """Port; 0 takes a free one."""
    slots: int = 32
    """Pictures drawn side by side, for each model."""
    queue: int = 64
    """Requests that may wait for each model; what comes then is refused with status 429."""
    speed: Speed = "auto"
    """As for sample; decided once, when the server starts."""
    max_completions: int = 32
    """Pictures that one request may ask for."""
    max_upload_mb: float = 10.0
    """Size of a request."""
    max_pixels: int = 16_777_216
    """Width times height of a picture that comes in."""
    max_connections: int = 256
    """Open connections; what comes then is refused with status 503."""
    timeout_seconds: float = 120.0
    """Time for a request to come in, and then for its answer, waiting included."""
    shutdown_seconds: float = 10.0
    """Time for what is being drawn when the server is stopped; what waits is refused at once."""

    def __post_init__(self) -> None:
        check_numbers(self, at_least_one="slots queue max_completions max_pixels max_connections")
        if not 0 <= self.port <= 65_535:
            raise InputError(f"--port: expected a number from 0 to 65535, got {self.port}")
        for name in ("max_upload_mb", "timeout_seconds", "shutdown_seconds"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InputError(f"{flag(name)}: expected a number above 0, got {getattr(self, name)}")


@dataclass(frozen=True)
class StudyConfig:
    """What every checkpoint of a study is measured with; kept in its folder."""

    train_images: int = 10_000
    """Labelled training images that each probe is fitted to, drawn at random; all where there are fewer."""
    test_images: int = 2_000
    """Test images, drawn at random, for loss and accuracy; all where there are fewer."""
    seed: int = 0
    """Fixes which images are taken, what is held out to choose layers, and the untrained models."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Type of the matrix products; weights stay fp32."""

    def __post_init__(self) -> None:
        for name in ("train_images", "test_images"):
            if getattr(self, name) < 2:
                raise InputError(f"{flag(name)}: expected at least 2, got {getattr(self, name)}")
        if self.seed < 0:
            raise InputError(f"--seed: expected 0 or more, got {self.seed}")


@dataclass(frozen=True)
class OutputOptions:
    """What is printed."""

    json: bool = False
    """Print one JSON object on stdout, for machines."""
    verbose: bool = False
    """Say more on stderr: model, device, seconds; and tracebacks of unexpected errors."""


def flag(name: str) -> str:
    """The command-line spelling of a field."""
    return "--" + name.replace("_", "-")


def read_recipe(name_or_path: str) -> PretrainConfig:
    """The run a recipe describes: the name of a shipped one, or the path of a flat TOML file."""
    path = Path(name_or_path)
    shipped = {
        file.name.removesuffix(".toml"): file
        for file in (resources.files("nextpixel") / "recipes").iterdir()
        if file.name.endswith(".toml")
    }
    is_file = path.suffix == ".toml" and path.is_file()
    if not is_file and name_or_path not in shipped:
        raise InputError(
            f"--recipe: expected the path of a .toml file or one of {', '.join(sorted(shipped))}, got {name_or_path!r}"
        )
    try:
        values = tomllib.loads((path if is_file else shipped[name_or_path]).read_text(encoding="utf-8"))
    except ValueError as error:  # no TOML, or no text at all
        raise InputError(f"{name_or_path}: expected a TOML file, got a mistake: {error}") from None
    return replace_checked(PretrainConfig(), values, where=name_or_path)


C = TypeVar("C", bound=RunConfig)


def replace_checked(config: C, values: dict[str, Any], where: str) -> C:
    """A copy with these values, each of a known name and the right type."""
    import difflib
    import typing

    kinds = typing.get_type_hints(type(config))
    for name, value in values.items():
        if name not in kinds:
            near = difflib.get_close_matches(name, kinds, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; expected one of {', '.join(kinds)}"
            raise InputError(f"{where}: unknown setting {name!r}{hint}")
        if not _fits(value, kinds[name]):
            raise InputError(f"{where}: {name} = {value!r} is not {_spell(kinds[name])}")
    try:
        return dataclasses.replace(config, **values)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _fits(value: Any, kind: Any) -> bool:
    import typing

    options = typing.get_args(kind)
    if typing.get_origin(kind) is Literal:
        return value in options
    if options:
        return any(_fits(value, option) for option in options)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def _spell(kind: Any) -> str:
    import typing

    options = typing.get_args(kind)
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, options))
    if options:
        return " or ".join(_spell(option) for option in options if option is not type(None))
    return {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}.get(kind, str(kind))
