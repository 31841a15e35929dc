"""Speed: the same work for any model, beside what this machine could do at best and, if asked, beside transformers.

Weights do not matter for speed, so a named size with random ones will do. Contenders take turns within each repeat, so
that whatever else the machine does meets all of them; medians are reported and every repetition is kept.
"""

from __future__ import annotations

import copy
import itertools
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nextpixel.checkpoints import save
from nextpixel.config import SIZES, ImageGPTConfig, SamplingConfig, Speed
from nextpixel.devices import autocast, can_compile, choose_dtype, machine
from nextpixel.drawing import loop as drawing
from nextpixel.errors import InputError
from nextpixel.network import cost as plan
from nextpixel.network.decoding import Decoder, Int8Decoder, Read, choose_decoder
from nextpixel.network.int8.packing import can_round
from nextpixel.network.model import ImageGPT, cross_entropy
from nextpixel.progress import say
from nextpixel.representation.extraction import pooled
from nextpixel.tokens.palette import Palette
from nextpixel.training import optim

WORKS = ("complete", "sample", "decode", "features", "score", "encode", "train")
DRAWN = ("complete", "sample", "decode")
COMPARED = (*DRAWN, "features", "train")
Clock = Literal["wall", "cpu"]


@dataclass(frozen=True)
class Row:
    """One kind of work at one batch size, by one contender."""

    work: str
    batch: int
    contender: str
    how: str
    seconds: list[float]
    """Of every repetition."""
    images_per_second: float
    pixels_per_second: float
    per_cent_of_floor: float | None
    """100 times the least time this machine's memory and matrix products allow, over the median."""
    ratio: float | None = None
    """Ours to the best of transformers', by medians."""


def random_model(size: str) -> ImageGPT:
    """A named size with random weights and OpenAI's palette."""
    if size not in SIZES:
        raise InputError(f"expected one of {', '.join(SIZES)}, got {size!r}", argument="size")
    model = ImageGPT(SIZES[size]).eval()
    model.tokenizer = Palette.openai()
    return model


@torch.no_grad()
def floors(device: torch.device, now: Callable[[], float]) -> dict[str, float]:
    """Bytes read per second, and operations per second of a matrix product in each dtype, measured now."""
    fast = device.type == "cuda"  # where a small product or read ends before it has begun
    block = torch.ones(1 << (28 if fast else 26), device=device)  # 1 GB, or 256 MB: more than caches hold
    found = {"bytes_per_second": block.nbytes / _best(block.sum, device, now)}
    del block
    side = 8192 if fast else 1024
    for name in ("fp32", "bf16"):
        a, b = torch.randn(2, side, side, device=device).to(torch.float32 if name == "fp32" else torch.bfloat16)
        found[f"{name}_per_second"] = 2 * side**3 / _best(partial(torch.matmul, a, b), device, now)
    return found


def _best(work: Callable[[], object], device: torch.device, now: Callable[[], float]) -> float:
    times = []
    for _ in range(5):
        start = now()
        work()
        _wait(device)
        times.append(now() - start)
    return min(times)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def bench(
    model: ImageGPT,
    works: list[str],
    batches: list[int],
    *,
    repeats: int = 5,
    pixels: int | None = None,
    speed: Speed = "auto",
    against: bool = False,
    clock: Clock = "wall",
) -> dict[str, Any]:
    """Time each of `works` at each batch size; a dict for JSON, with `rows` as in Row.

    "complete" draws the lower half of `batch` different pictures, prompt included, "sample" whole ones, "decode" only
    `pixels` pixels (32 unless told) behind three quarters of a picture; `pixels` also shortens the other two, whose
    images per second then count what was not drawn as drawn at the same speed. `clock` "cpu" is the time of this
    process, for machines that others use too. Raises InputError for work that is not known.
    """
    for work in works:
        if work not in WORKS:
            raise InputError(f"expected some of {', '.join(WORKS)}, got {work!r}", argument="work")
        if work in DRAWN and model.config.objective == "masked":
            raise InputError(
                f"a masked model cannot draw; expected no {work}, as in `work=features,encode`", argument="work"
            )
    now = time.process_time if clock == "cpu" else time.perf_counter
    limits = floors(model.device, now)
    rows: list[Row] = []
    for work in works:
        for batch in [batches[-1]] if work == "encode" else batches:
            say(f"{work}, batch {batch}")
            contenders = _ours(model, work, batch, pixels, speed)
            theirs = _theirs(model, work, batch, pixels) if against and work in COMPARED else []
            rows += _measure(model.config, work, batch, [contenders, *theirs], repeats, now, model.device, limits)
    return {
        "model": {"parameters": model.config.parameters, "layers": model.config.layers, "width": model.config.width},
        "machine": machine(str(model.device))
        | {
            "device": torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else model.device.type,
            "threads": torch.get_num_threads(),
            "load_average": os.getloadavg() if hasattr(os, "getloadavg") else None,
        },
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
        | ({"transformers": version("transformers")} if against else {}),
        "clock": clock,
        "floors": limits,
        "rows": [vars(row) for row in rows],
    }


@dataclass(frozen=True)
class _Contender:
    name: str
    how: str
    prepare: Callable[[], Any]
    """Not timed; what it returns goes into `run`."""
    run: Callable[[Any], object]
    drawn: int
    """Pixels of each image that a run makes."""
    floor: Callable[[dict[str, float]], float] | None
    """Least seconds of a run."""


def _measure(
    config: ImageGPTConfig,
    work: str,
    batch: int,
    contenders: list[_Contender],
    repeats: int,
    now: Callable[[], float],
    device: torch.device,
    limits: dict[str, float],
) -> list[Row]:
    seconds: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for turn in range(repeats + 1):
        for contender in contenders:
            ready = contender.prepare()
            _wait(device)
            start = now()
            contender.run(ready)
            _wait(device)
            if turn:  # the first time packs weights, compiles and fills caches
                seconds[contender.name].append(now() - start)
            del ready
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    rivals = [median for name, median in medians.items() if name != "nextpixel"]
    whole = config.tokens // 2 if work in ("complete", "decode") else config.tokens  # pixels that make an image
    return [
        Row(
            work,
            batch,
            c.name,
            c.how,
            seconds[c.name],
            batch / medians[c.name] * c.drawn / whole,
            batch * c.drawn / medians[c.name],
            100 * c.floor(limits) / medians[c.name] if c.floor else None,
            min(rivals) / medians[c.name] if rivals and c.name == "nextpixel" else None,
        )
        for c in contenders
    ]


def _stretch(config: ImageGPTConfig, work: str, pixels: int | None) -> tuple[int, int]:
    """(pixels known before, pixels to draw)."""
    known = {"complete": config.tokens // 2, "sample": 0, "decode": config.tokens * 3 // 4}[work]
    return known, min(pixels or (32 if work == "decode" else config.tokens), config.tokens - known)


def _tokens(config: ImageGPTConfig, batch: int, length: int) -> Tensor:
    return torch.randint(0, config.colors, (batch, length), generator=torch.Generator().manual_seed(0))


def _ours(model: ImageGPT, work: str, batch: int, pixels: int | None, speed: Speed) -> _Contender:
    config, device = model.config, model.device
    dtype = choose_dtype("auto", str(device))
    if work in DRAWN:
        known, drawn = _stretch(config, work, pixels)
        decoder = choose_decoder(model, batch, config.tokens - known, speed)
        prompts = _tokens(config, batch, known).to(device)
        noise = np.random.default_rng(0).random((batch, config.tokens))
        read: list[Read] = []  # one prefill for all repetitions

        def begin() -> drawing.Table[drawing.Row]:
            table: drawing.Table[drawing.Row] = drawing.Table(decoder(model, batch))
            if work == "decode":
                if not read:
                    read.append(table.decoder.read(prompts))
                table.add(rows(), read[0], range(batch))
            return table

        def rows() -> list[drawing.Row]:
            return [drawing.Row(one, SamplingConfig(), known) for one in noise]

        def draw(table: drawing.Table[drawing.Row]) -> None:
            if work != "decode":
                table.begin(rows(), prompts, range(batch))
            steps = drawn + (work == "decode")  # the first token needs no step of the network
            for _ in itertools.islice(table, min(steps, config.tokens - known)):
                pass

        return _Contender(
            "nextpixel", decoder.name, begin, draw, drawn,
            lambda f: _drawing_floor(config, decoder, batch, known, drawn, f),
        )  # fmt: skip
    forward = plan.flops_per_image(config) / 3
    if work == "encode":
        height, width = config.rows * model.tokenizer.patch[0], config.columns * model.tokenizer.patch[1]
        squares = np.random.default_rng(0).integers(0, 256, (batch, height, width, 3), np.uint8)
        return _Contender(
            "nextpixel", "", lambda: squares, lambda ready: model.tokenizer.encode(ready), config.tokens, None
        )
    tokens = _tokens(config, batch, config.tokens)
    if work == "features":
        layer, how = config.layers // 2, "int8" if speed == "auto" and can_round(model) else dtype
        return _Contender(
            "nextpixel",
            how,
            lambda: tokens,
            lambda ready: pooled(model, ready, [layer], dtype=how, compiled=how != "int8"),
            config.tokens,
            lambda f: batch * plan.feature_flops_per_image(config, layer) / f[f"{dtype}_per_second"],
        )
    tokens = tokens.to(device)
    if work == "score":

        def score(ready: Tensor) -> None:
            with torch.inference_mode(), autocast(str(device), dtype):
                cross_entropy(model(ready), ready)

        return _Contender(
            "nextpixel",
            dtype,
            lambda: tokens,
            score,
            config.tokens,
            lambda f: batch * forward / f[f"{dtype}_per_second"],
        )
    trained = copy.deepcopy(model).train().requires_grad_(True)
    compiled = can_compile(str(device))
    if compiled:
        for block in trained.blocks:
            block.compile()

    def loss(ready: Tensor) -> Tensor:
        with autocast(str(device), dtype):
            logits = trained(ready)
        return cross_entropy(logits, ready)

    return _Contender(
        "nextpixel",
        f"{dtype}, compiled" if compiled else dtype,
        lambda: tokens,
        _training_step(trained, loss),
        config.tokens,
        lambda f: 3 * batch * forward / f[f"{dtype}_per_second"],
    )


def _training_step(model: nn.Module, loss: Callable[[Tensor], Tensor]) -> Callable[[Tensor], None]:
    optimizers = optim.adam(model)

    def step(tokens: Tensor) -> None:
        loss(tokens).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    return step


def _same(tokens: Tensor) -> Tensor:
    return tokens


def _drawing_floor(
    config: ImageGPTConfig, decoder: type[Decoder], batch: int, known: int, drawn: int, limits: dict[str, float]
) -> float:
    """Each step reads the weights and the filled cache of every row, or does the products if those take longer."""
    weight, cache, rate = 4.0, 4.0, limits["fp32_per_second"]  # bytes of each number
    if decoder is Int8Decoder:
        weight, cache, rate = 1.0, 1 + 4 / config.head_width, limits["bf16_per_second"]
    matrices = config.layers * config.block_matrix_parameters + config.colors * config.width
    mean = known + (drawn + 1) / 2
    read = matrices * weight + batch * 2 * config.layers * mean * config.width * cache
    return drawn * max(read / limits["bytes_per_second"], 2 * batch * matrices / rate)


def _theirs(model: ImageGPT, work: str, batch: int, pixels: int | None) -> list[_Contender]:
    """transformers in fp32 and in bf16; its static cache gives wrong pixels for this model, so its dynamic one."""
    try:
        import transformers
    except ImportError:
        raise InputError("transformers is not installed; pip install transformers", argument="against") from None
    transformers.logging.set_verbosity_error()
    config, device = model.config, model.device
    with tempfile.TemporaryDirectory() as folder:
        save(model, Path(folder) / "model", for_transformers=True)
        loaded = transformers.ImageGPTForCausalImageModeling.from_pretrained(Path(folder) / "model").eval().to(device)
    found = []
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        start = torch.full((batch, 1), config.colors)
        tokens = torch.cat([start, _tokens(config, batch, config.tokens)[:, :-1]], 1).to(device)
        if work == "train":  # fp32 weights in both, as ours are
            trained = copy.deepcopy(loaded).train()

            def loss(ready: Tensor, trained: Any = trained, dtype: str = name) -> Tensor:
                with autocast(str(device), dtype):
                    return cast(Tensor, trained(ready, labels=ready).loss)

            step = _training_step(trained, loss)
            found.append(_Contender(f"transformers {name}", name, partial(_same, tokens), step, config.tokens, None))
            continue
        other = copy.deepcopy(loaded).to(dtype)
        if work == "features":
            layer = config.layers // 2

            def features(ready: Tensor, other: Any = other, layer: int = layer) -> object:
                with torch.inference_mode():  # their way: all layers are computed and kept
                    return other.transformer(ready, output_hidden_states=True).hidden_states[layer].mean(1)

            found.append(
                _Contender(f"transformers {name}", name, partial(_same, tokens), features, config.tokens, None)
            )
            continue
        known, drawn = _stretch(config, work, pixels)
        prompts = torch.cat([start, _tokens(config, batch, known)], 1).to(device)

        def prefill(other: Any = other, prompts: Tensor = prompts, *, read: list[Any]) -> Any:
            if work != "decode":
                return None
            with torch.inference_mode():
                if not read:
                    read.append(other(prompts, use_cache=True))
            cache = read[0].past_key_values
            if extra := cache.get_seq_length() - prompts.shape[1]:
                cache.crop(-extra)
            return read[0]

        more = known + drawn < config.tokens  # nothing is scored behind the last pixel

        def draw(
            ready: Any, other: Any = other, prompts: Tensor = prompts, drawn: int = drawn, more: bool = more
        ) -> None:
            with torch.inference_mode():
                if ready is None:
                    other.generate(
                        prompts, do_sample=True, max_new_tokens=drawn, min_new_tokens=drawn, use_cache=True, top_k=0
                    )
                    return
                for t in range(drawn):
                    chances = F.softmax(ready.logits[:, -1, : config.colors].float(), -1)
                    tokens = torch.multinomial(chances, 1)
                    if t + 1 < drawn or more:
                        ready = other(tokens, past_key_values=ready.past_key_values, use_cache=True)

        found.append(_Contender(f"transformers {name}", name, partial(prefill, read=[]), draw, drawn, None))
    return found


def table(result: dict[str, Any]) -> str:
    """The rows as a Markdown table."""
    lines = ["| work | batch | by | images/s | pixels/s | of the floor | ratio |", "|---|---|---|---|---|---|---|"]
    for row in result["rows"]:
        floor = "" if row["per_cent_of_floor"] is None else f"{row['per_cent_of_floor']:.0f} %"
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.1f}"
        by = (
            f"{row['contender']} ({row['how']})" if row["contender"] == "nextpixel" and row["how"] else row["contender"]
        )
        lines.append(
            f"| {row['work']} | {row['batch']} | {by} | {row['images_per_second']:.3g} | "
            f"{row['pixels_per_second']:,.0f} | {floor} | {ratio} |"
        )
    return "\n".join(lines)
