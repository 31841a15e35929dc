"""Benchmark a model against the limits of this machine and, optionally, against transformers.

Weights do not affect speed, so a named size with random weights is enough. Contenders alternate within each repeat, so
that other load on the machine affects all of them; medians are reported and every repetition is kept.
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
from nextpixel.network.decoding import Decoder, Int8Decoder, Prefill, choose_decoder
from nextpixel.network.int8.packing import supports_int8
from nextpixel.network.losses import cross_entropy
from nextpixel.network.model import ImageGPT
from nextpixel.progress import say
from nextpixel.representation.extraction import pooled
from nextpixel.tokens import pixels_of
from nextpixel.tokens.palette import Palette
from nextpixel.training import optim

WORKS = ("complete", "sample", "decode", "features", "score", "encode", "train")
DRAWN = ("complete", "sample", "decode")
COMPARED = (*DRAWN, "features", "train")
Clock = Literal["wall", "cpu"]


def random_model(size: str) -> ImageGPT:
    """A named size with random weights and OpenAI's palette."""
    if size not in SIZES:
        raise InputError(f"expected one of {', '.join(SIZES)}, got {size!r}", argument="size")
    model = ImageGPT(SIZES[size]).eval()
    model.tokenizer = Palette.openai()
    return model


@torch.no_grad()
def floors(device: torch.device, now: Callable[[], float]) -> dict[str, float]:
    """Measure bytes read per second, and FLOP/s of a matrix product in each dtype."""
    fast = device.type == "cuda"  # where small reads and products only measure the launch
    block = torch.ones(1 << (28 if fast else 26), device=device)  # 1 GB or 256 MB, larger than caches
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
        _synchronize(device)
        times.append(now() - start)
    return min(times)


def _synchronize(device: torch.device) -> None:
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
    """Time each of `works` at each batch size; a dict for JSON, with `rows` as `_measure` has them.

    "complete" draws the lower half of `batch` different images, including the prefill and the decoding into pixels,
    "sample" whole ones, "decode" only tokens of `pixels` pixels (default: 32 tokens) after three quarters of an image.
    `pixels` also shortens the other two, whose images per second are then extrapolated. `clock` "cpu" is the CPU time
    of this process, for shared machines. Raises InputError for unknown work.
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
    rows: list[dict[str, Any]] = []
    for work in works:
        for batch in [batches[-1]] if work == "encode" else batches:
            say(f"{work}, batch {batch}")
            contenders = [_nextpixel(model, work, batch, pixels, speed)]
            if against and work in COMPARED:
                contenders += _transformers(model, work, batch, pixels)
            rows += _measure(model, work, batch, contenders, repeats, now, limits)
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
        "rows": rows,
    }


@dataclass(frozen=True)
class _Contender:
    name: str
    how: str
    prepare: Callable[[], Any]
    """Not timed; returns the argument of `run`."""
    run: Callable[[Any], object]
    drawn: int
    """Tokens of each image that a run draws or processes."""
    floor: Callable[[dict[str, float]], float] | None = None
    """The least seconds of a run, given `floors`."""


def _measure(
    model: ImageGPT,
    work: str,
    batch: int,
    contenders: list[_Contender],
    repeats: int,
    now: Callable[[], float],
    limits: dict[str, float],
) -> list[dict[str, Any]]:
    """Timings of each contender.

    per_cent_of_floor  100 times the least time that this machine's memory and matrix products allow, by the median
    ratio              of ours: the median time of the fastest contender of transformers, by our own
    """
    seconds: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for repeat in range(repeats + 1):
        for contender in contenders:
            argument = contender.prepare()
            _synchronize(model.device)
            start = now()
            contender.run(argument)
            _synchronize(model.device)
            if repeat:  # the first run packs weights, compiles and fills caches
                seconds[contender.name].append(now() - start)
            del argument
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    others = [median for name, median in medians.items() if name != "nextpixel"]
    config, pixels = model.config, pixels_of(model.tokenizer)
    whole = config.tokens // 2 if work in ("complete", "decode") else config.tokens  # tokens that make an image
    return [
        {
            "work": work,
            "batch": batch,
            "contender": c.name,
            "how": c.how,
            "seconds": seconds[c.name],
            "images_per_second": batch / medians[c.name] * c.drawn / whole,
            "pixels_per_second": batch * c.drawn * pixels / medians[c.name],
            "per_cent_of_floor": 100 * c.floor(limits) / medians[c.name] if c.floor else None,
            "ratio": min(others) / medians[c.name] if others and c.name == "nextpixel" else None,
        }
        for c in contenders
    ]


def _drawn_range(config: ImageGPTConfig, work: str, pixels: int | None, covers: int = 1) -> tuple[int, int]:
    """(tokens of the prompt, tokens to draw)."""
    known = {"complete": config.tokens // 2, "sample": 0, "decode": config.tokens * 3 // 4}[work]
    return known, min(-(-(pixels or 0) // covers) or (32 if work == "decode" else config.tokens), config.tokens - known)


def _tokens(config: ImageGPTConfig, batch: int, length: int) -> Tensor:
    return torch.randint(0, config.colors, (batch, length), generator=torch.Generator().manual_seed(0))


def _nextpixel(model: ImageGPT, work: str, batch: int, pixels: int | None, speed: Speed) -> _Contender:
    if work in DRAWN:
        return _nextpixel_drawing(model, work, batch, pixels, speed)
    config, device = model.config, str(model.device)
    dtype = choose_dtype("auto", device)
    if work == "encode":
        height, width = config.rows * model.tokenizer.patch[0], config.columns * model.tokenizer.patch[1]
        shape = batch, height, width, model.tokenizer.channels
        squares = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        return _Contender("nextpixel", "", lambda: squares, model.tokenizer.encode, config.tokens)
    tokens = _tokens(config, batch, config.tokens)
    if work != "features":  # which moves each batch itself
        tokens = tokens.to(device)
    how, flops = dtype, float(batch * plan.flops_per_image(config))  # forward and backward
    run: Callable[[Tensor], object]
    if work == "features":
        layer, how = config.layers // 2, "int8" if speed == "auto" and supports_int8(model) else dtype
        flops = batch * plan.feature_flops_per_image(config, layer)
        run = partial(pooled, model, layers=[layer], dtype=how, compiled=how != "int8" and can_compile(device))
    elif work == "score":
        flops /= 3

        def run(tokens: Tensor) -> None:
            with torch.inference_mode(), autocast(device, dtype):
                cross_entropy(model(tokens), tokens)

    else:
        trained = copy.deepcopy(model).train().requires_grad_(True)
        if can_compile(device):
            how += ", compiled"
            for block in trained.blocks:
                block.compile()

        def loss(tokens: Tensor) -> Tensor:
            with autocast(device, dtype):
                logits = trained(tokens)
            return cross_entropy(logits, tokens)

        run = _training_step(trained, loss)
    return _Contender(
        "nextpixel", how, lambda: tokens, run, config.tokens, lambda limits: flops / limits[f"{dtype}_per_second"]
    )


def _nextpixel_drawing(model: ImageGPT, work: str, batch: int, pixels: int | None, speed: Speed) -> _Contender:
    config = model.config
    known, drawn = _drawn_range(config, work, pixels, pixels_of(model.tokenizer))
    decoder = choose_decoder(model, batch, config.tokens - known, speed)
    prompts = _tokens(config, batch, known).to(model.device)
    noise = np.random.default_rng(0).random((batch, config.tokens))
    prefills: list[Prefill] = []  # one for all repetitions

    def rows() -> list[drawing.Row]:
        return [drawing.Row(one, SamplingConfig(), known) for one in noise]

    def begin() -> drawing.Table[drawing.Row]:
        table: drawing.Table[drawing.Row] = drawing.Table(decoder(model, batch))
        if work == "decode":
            if not prefills:
                prefills.append(table.decoder.prefill(prompts))
            table.add(rows(), prefills[0], range(batch))
        return table

    def draw(table: drawing.Table[drawing.Row]) -> None:
        if work != "decode":
            table.begin(rows(), prompts, range(batch))
        steps = drawn + (work == "decode")  # the first token needs no step of the network
        tokens = [tokens for _, tokens, _ in itertools.islice(table, min(steps, config.tokens - known))]
        if work != "decode":
            whole_rows = F.pad(torch.stack(tokens, 1), (0, -drawn % config.columns))
            model.tokenizer.decode(whole_rows, config.columns)

    floor = partial(drawing_floor, config, decoder, batch, known, drawn)
    return _Contender("nextpixel", decoder.name, begin, draw, drawn, floor)


def _training_step(model: nn.Module, loss: Callable[[Tensor], Tensor]) -> Callable[[Tensor], None]:
    optimizers = optim.adam(model)

    def step(tokens: Tensor) -> None:
        loss(tokens).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    return step


def drawing_floor(
    config: ImageGPTConfig, decoder: type[Decoder], batch: int, known: int, drawn: int, limits: dict[str, float]
) -> float:
    """Each step reads the weights and every row's filled cache, or computes the products if that takes longer."""
    weight, cache, rate = 4.0, 4.0, limits["fp32_per_second"]  # bytes of each number
    if decoder is Int8Decoder:
        weight, cache, rate = 1.0, 1 + 4 / config.head_width, limits["bf16_per_second"]
    matrices = config.layers * config.block_matrix_parameters + config.colors * config.width
    mean = known + (drawn + 1) / 2
    read = matrices * weight + batch * 2 * config.layers * mean * config.width * cache
    return drawn * max(read / limits["bytes_per_second"], 2 * batch * matrices / rate)


def _transformers(model: ImageGPT, work: str, batch: int, pixels: int | None) -> list[_Contender]:
    """transformers in fp32 and bf16, with its dynamic cache: its static one gives wrong pixels for this model."""
    try:
        import transformers
    except ImportError:
        raise InputError("transformers is not installed; pip install transformers", argument="against") from None
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        save(model, Path(folder) / "model", for_transformers=True)
        loaded = transformers.ImageGPTForCausalImageModeling.from_pretrained(Path(folder) / "model").eval()
    return [
        _transformers_in(dtype, copy.deepcopy(loaded).to(model.device), model.config, work, batch, pixels)
        for dtype in ("fp32", "bf16")
    ]


def _transformers_in(
    dtype: str, network: Any, config: ImageGPTConfig, work: str, batch: int, pixels: int | None
) -> _Contender:
    name, device = f"transformers {dtype}", str(network.device)
    start = torch.full((batch, 1), config.colors)
    tokens = torch.cat([start, _tokens(config, batch, config.tokens)[:, :-1]], 1).to(device)
    if work == "train":  # fp32 weights in both, as ours
        network.train()

        def loss(tokens: Tensor) -> Tensor:
            with autocast(device, dtype):
                return cast(Tensor, network(tokens, labels=tokens).loss)

        return _Contender(name, dtype, lambda: tokens, _training_step(network, loss), config.tokens)
    network.to(torch.float32 if dtype == "fp32" else torch.bfloat16)
    if work == "features":

        @torch.inference_mode()
        def features(tokens: Tensor) -> object:  # transformers computes and keeps all layers
            hidden = network.transformer(tokens, output_hidden_states=True).hidden_states
            return hidden[config.layers // 2].mean(1)

        return _Contender(name, dtype, lambda: tokens, features, config.tokens)
    known, drawn = _drawn_range(config, work, pixels)
    prompts = torch.cat([start, _tokens(config, batch, known)], 1).to(device)
    prefills: list[Any] = []  # one for all repetitions

    @torch.inference_mode()
    def prefill() -> Any:
        if work != "decode":
            return None
        if not prefills:
            prefills.append(network(prompts, use_cache=True))
        cache = prefills[0].past_key_values
        if extra := cache.get_seq_length() - prompts.shape[1]:
            cache.crop(-extra)
        return prefills[0]

    @torch.inference_mode()
    def draw(output: Any) -> None:
        if output is None:
            network.generate(
                prompts, do_sample=True, max_new_tokens=drawn, min_new_tokens=drawn, use_cache=True, top_k=0
            )
            return
        for t in range(drawn):
            probabilities = F.softmax(output.logits[:, -1, : config.colors].float(), -1)
            tokens = torch.multinomial(probabilities, 1)
            if t + 1 < drawn or known + drawn < config.tokens:  # nothing follows the last pixel
                output = network(tokens, past_key_values=output.past_key_values, use_cache=True)

    return _Contender(name, dtype, prefill, draw, drawn)


def table(result: dict[str, Any]) -> str:
    """The rows as a Markdown table."""
    lines = ["| work | batch | by | images/s | pixels/s | of the floor | ratio |", "|---|---:|---|---:|---:|---:|---:|"]
    for row in result["rows"]:
        floor = "" if row["per_cent_of_floor"] is None else f"{row['per_cent_of_floor']:.0f}%"
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.1f}"
        how = f" ({row['how']})" if row["contender"] == "nextpixel" and row["how"] else ""
        lines.append(
            f"| {row['work']} | {row['batch']} | {row['contender']}{how} | {row['images_per_second']:.3g} | "
            f"{row['pixels_per_second']:,.0f} | {floor} | {ratio} |"
        )
    return "\n".join(lines)
