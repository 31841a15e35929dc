"""What decides drawing, serving and measuring, and the options that commands share."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from nextpixel.config.keywords import Settings
from nextpixel.config.terms import Device, Fit, Levels, Speed, check_numbers
from nextpixel.errors import InputError


@dataclass(frozen=True)
class SamplingConfig(Settings):
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
            raise InputError(f"expected auto or exact, got {self.speed!r}", argument="speed")
        if not 0 <= self.temperature < float("inf"):
            raise InputError(f"expected a number of 0 or more, got {self.temperature}", argument="temperature")
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"expected at least 1, got {self.top_k}", argument="top_k")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InputError(f"expected a number above 0 and at most 1, got {self.top_p}", argument="top_p")
        if self.seed < 0:
            raise InputError(f"expected 0 or more, got {self.seed}", argument="seed")


@dataclass(frozen=True)
class ModelOptions(Settings):
    """Which model works, and on what."""

    model: str | None = None
    """A checkpoint folder, a run folder or a hub name; the embedded model unless told."""
    fit: Fit | None = None
    """How pictures become squares, as pretrain tells; the model's own way unless told."""
    range: str | None = None
    """LOW,HIGH: which numbers are black and white where a format does not state it (more than 8 bits, floats, DICOM
    without a window); by default looked for over the images, where the model has no range of its own."""
    bands: str | None = None
    """R,G,B: which bands are shown of pictures with more than three, counted from 1; by default the first three."""
    device: Device = "auto"
    """auto takes cuda, then mps, then cpu."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Type of the weights: bf16 halves the memory and is coarser."""
    threads: int | None = None
    """CPU threads; torch's choice unless told."""

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise InputError(f"expected at least 1, got {self.threads}", argument="threads")
        Levels.of(self.range, self.bands)

    @property
    def levels(self) -> Levels:
        """What range and bands give."""
        return Levels.of(self.range, self.bands)


@dataclass(frozen=True)
class ServeConfig(Settings):
    """Where a server listens, and its limits."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets other machines in."""
    port: int = 8000
    """Port; 0 takes a free one."""
    root_path: str = ""
    """Path under which a proxy serves it, as /nextpixel; the proxy may take it off or leave it."""
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
            raise InputError(f"expected a number from 0 to 65535, got {self.port}", argument="port")
        if not re.fullmatch(r"(/[\w.~-]+)*", self.root_path, re.ASCII):
            raise InputError(
                f"expected a path such as /nextpixel, without a slash at its end, got {self.root_path!r}",
                argument="root_path",
            )
        for name in ("max_upload_mb", "timeout_seconds", "shutdown_seconds"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InputError(f"expected a number above 0, got {getattr(self, name)}", argument=name)


@dataclass(frozen=True)
class StudyConfig(Settings):
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
                raise InputError(f"expected at least 2, got {getattr(self, name)}", argument=name)
        if self.seed < 0:
            raise InputError(f"expected 0 or more, got {self.seed}", argument="seed")


@dataclass(frozen=True)
class OutputOptions(Settings):
    """What is printed."""

    json: bool = False
    """Print one JSON object on stdout, for machines."""
    verbose: bool = False
    """Say more on stderr: model, device, seconds; and tracebacks of unexpected errors."""
