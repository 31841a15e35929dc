"""Settings of drawing, serving and studies, and options shared by several commands."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from nextpixel.config.settings import Settings
from nextpixel.config.terms import Anchor, Device, Fit, Levels, Size, Speed, check_numbers
from nextpixel.errors import InputError, shortened

GUIDANCE_AT_MOST = 100.0


@dataclass(frozen=True)
class SamplingConfig(Settings):
    """How each colour is sampled."""

    temperature: float = 1.0
    """Divides the logits: 1 samples from the model's distribution, 0 always picks the most likely colour."""
    top_k: int | None = None
    """Sample only from this many most likely colours."""
    top_p: float | None = None
    """Sample only from the most likely colours that together have this probability."""
    guidance: float = 1.0
    """How strongly a caption steers: adds guidance - 1 times the difference between the logits with the caption and
    without; 1 is off, and above 1 takes twice the time."""
    allow_colors: str | None = None
    """Draw only with these colours of the model, as in "#ff0000,#00000000,7": colours or their numbers."""
    forbid_colors: str | None = None
    """Draw without these colours."""
    seed: int = 0
    """Random seed; the noise depends only on seed, picture, completion and pixel."""
    speed: Speed = "auto"
    """exact: the unmodified network; a seed gives the same picture whatever else is drawn with it. auto: weights and
    cache rounded to int8 where that is faster; keeps the distribution, but not the pixels that a seed gives."""

    def __post_init__(self) -> None:
        for name in ("allow_colors", "forbid_colors"):
            if not isinstance(getattr(self, name), str | None):
                raise InputError(
                    f'expected text as in "#ff0000,7", got {shortened(getattr(self, name))}', argument=name
                )
        if self.speed not in ("auto", "exact"):
            raise InputError(f"expected auto or exact, got {self.speed!r}", argument="speed")
        check_numbers(self, finite="temperature guidance", at_least_one="top_k", share="top_p", at_least_zero="seed")
        if self.guidance > GUIDANCE_AT_MOST:
            raise InputError(f"expected at most {GUIDANCE_AT_MOST:g}, got {self.guidance:g}", argument="guidance")


@dataclass(frozen=True)
class ModelOptions(Settings):
    """The model, and how it runs."""

    model: str | None = None
    """A checkpoint folder, a run folder, a hub name or a bundled model (embedded, faces, photos); default: embedded."""
    device: Device = "auto"
    """auto: cuda if available, else mps, else cpu."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Type of the weights; bf16 takes half the memory and is less precise."""
    threads: int | None = None
    """CPU threads; default: torch's choice."""

    def __post_init__(self) -> None:
        check_numbers(self, at_least_one="threads")


@dataclass(frozen=True)
class PictureOptions(ModelOptions):
    """The model, how it runs, and how it gets its pictures."""

    fit: Fit | None = None
    """How pictures get the size of the model, see pretrain; default: as in training."""
    range: str | None = None
    """LOW,HIGH: the values shown as black and white where the format does not define them (more than 8 bits, floats,
    DICOM without a window); default: the model's range, or else that of the images."""
    bands: str | None = None
    """R,G,B: the bands to use of pictures with more than three, counted from 1; default: the first three."""
    anchor: Anchor | None = None
    """Where on the canvas `fit=place` puts smaller pictures; default: as in training."""
    slice: int | Size | None = None
    """Rows x columns of pixels of the tiles that sheets are cut into, as in 16x16, with `fit=place`."""
    scale: int | None = None
    """The factor by which pixel art is enlarged in its files, undone with `fit=place`; default: as in training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        Levels.among(vars(self))

    @property
    def levels(self) -> Levels:
        """`range`, `bands`, `anchor`, `slice` and `scale`, parsed."""
        return Levels.among(vars(self))


@dataclass(frozen=True)
class ServeConfig(Settings):
    """The server's address and limits."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 accepts connections from other machines."""
    port: int = 8000
    """Port; 0 picks a free one."""
    root_path: str = ""
    """Path prefix behind a proxy, such as /nextpixel; the proxy may strip it or not."""
    slots: int = 32
    """Pictures that each model draws at the same time."""
    queue: int = 64
    """Requests that may wait for each model; further ones get status 429."""
    speed: Speed = "auto"
    """As for sample; decided once, at start."""
    max_completions: int = 32
    """Maximum pictures per request."""
    max_upload_mb: float = 10.0
    """Maximum size of a request in MB."""
    max_pixels: int = 16_777_216
    """Maximum width times height of an uploaded picture."""
    max_connections: int = 256
    """Maximum open connections; further ones get status 503."""
    timeout_seconds: float = 120.0
    """Time limit for receiving a request, and again for answering it, including the wait in the queue."""
    shutdown_seconds: float = 10.0
    """Time to finish current drawings when the server stops; waiting requests are refused at once."""

    def __post_init__(self) -> None:
        check_numbers(
            self,
            at_least_one="slots queue max_completions max_pixels max_connections",
            above_zero="max_upload_mb timeout_seconds shutdown_seconds",
        )
        if not 0 <= self.port <= 65_535:
            raise InputError(f"expected a number from 0 to 65535, got {self.port}", argument="port")
        if not re.fullmatch(r"(/[\w.~-]+)*", self.root_path, re.ASCII):
            raise InputError(
                f"expected a path such as /nextpixel, without a slash at its end, got {self.root_path!r}",
                argument="root_path",
            )


@dataclass(frozen=True)
class StudyConfig(Settings):
    """How each checkpoint of a study is measured; recorded in the study's folder."""

    train_images: int = 10_000
    """Labelled training images for each probe, chosen at random; all if there are fewer."""
    test_images: int = 2_000
    """Test images for loss and accuracy, chosen at random; all if there are fewer."""
    seed: int = 0
    """Random seed of the choice of images, the held-out part that layers are chosen on, and the untrained models."""
    dtype: Literal["fp32", "bf16", "int8"] = "fp32"
    """Type of matrix products; weights stay fp32. int8: of features alone, on a CPU; losses are measured in bf16."""

    def __post_init__(self) -> None:
        for name in ("train_images", "test_images"):
            if getattr(self, name) < 2:
                raise InputError(f"expected at least 2, got {getattr(self, name)}", argument=name)
        check_numbers(self, seed="seed")


@dataclass(frozen=True)
class OutputOptions(Settings):
    """Output."""

    json: bool = False
    """Print one JSON object on stdout."""
    verbose: bool = False
    """Also print model, device and timings on stderr, and tracebacks of unexpected errors."""
    quiet: bool = False
    """Print nothing on stderr but errors."""

    def __post_init__(self) -> None:
        if self.quiet and self.verbose:
            raise InputError("cannot be combined with `verbose`", argument="quiet")
