"""The fast ways to draw against the plain network."""

import copy
import ctypes
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from models import lively, some_tokens
from torch import Tensor
from torch.torch_version import TorchVersion

from nextpixel import ImageGPT, ImageGPTConfig, Palette
from nextpixel.config import Activation, SamplingConfig
from nextpixel.drawing.loop import Row, Table, token_noise
from nextpixel.drawing.sampling import draw
from nextpixel.network import caches as caches_module
from nextpixel.network import decoding as decoding_module
from nextpixel.network.caches import Int8Cache
from nextpixel.network.decoding import (
    CompiledDecoder,
    Decoder,
    GuidedDecoder,
    Int8Decoder,
    PackedDecoder,
    RowDecoder,
    choose_decoder,
    compiled_step,
)
from nextpixel.network.int8 import kernels, packing
from nextpixel.network.int8.packing import packed_network
from nextpixel.network.losses import cross_entropy
from nextpixel.network.model import Norm
from nextpixel.training import optim

CLASSIC = ImageGPTConfig(layers=3, width=64, heads=2, side=6, colors=12)
OPTIONS = dict(positions="rotary", qk_norm=True, activation="squared-relu", mix_input=True, logit_cap=15.0)
MODERN = ImageGPTConfig(layers=3, width=64, heads=2, side=6, colors=12, **OPTIONS)

needs_compiler = pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="needs a C compiler")
ROUNDED = [pytest.param(Int8Decoder, id="int8", marks=needs_compiler)]


@pytest.fixture(params=[CLASSIC, MODERN], ids=["classic", "modern"])
def model(request: pytest.FixtureRequest) -> ImageGPT:
    return unlike(request.param)


def unlike(config: ImageGPTConfig) -> ImageGPT:
    """A model no part of which could stand for another: gains and mixes are random too."""
    model = lively(config, torch.float32)
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("gain", "mix")):
                weight.uniform_(0.4, 1.5, generator=generator)
    return model


@pytest.fixture(autouse=True)
def small_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caches_module, "BUCKET", 8)


def start(decoder: Decoder, prompts: Tensor, of: Tensor | None = None, rows: Tensor | None = None) -> Tensor:
    """Logits (b, K) of the next token of `rows`, by default all, which go on as prompts (M, P)[of]."""
    of = torch.arange(len(prompts)) if of is None else of
    logits, read = decoder.prefill(prompts)
    decoder.fill(torch.arange(len(of)) if rows is None else rows, read, of)
    return logits[of]


def decoded(model: ImageGPT, kind: type[Decoder], tokens: Tensor, known: int) -> Tensor:
    """Logits of all tokens behind the first `known` ones, one by one."""
    decoder = kind(model, len(tokens))
    parts = [start(decoder, tokens[:, :known]).clone()]
    parts += [decoder.step(tokens[:, t]).clone() for t in range(known, tokens.shape[1] - 1)]
    return torch.stack(parts, 1)


@pytest.mark.parametrize("kind", [Decoder, RowDecoder, PackedDecoder])
@pytest.mark.parametrize("known", [0, 1, 17])
def test_fp32_logits_are_the_network_s_at_every_position(model: ImageGPT, kind: type[Decoder], known: int) -> None:
    tokens = some_tokens(3, model.config)
    assert (decoded(model, kind, tokens, known) - model(tokens)[:, known:]).abs().max() < 1e-4


@pytest.mark.parametrize("kind", [Decoder, RowDecoder, PackedDecoder, *ROUNDED])
def test_prompts_read_in_groups_are_those_read_at_once(
    model: ImageGPT, kind: type[Decoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens, of = some_tokens(5, model.config), [4, 0, 0, 3, 1, 2, 4]

    def drawn() -> tuple[dict[int, list[int]], Tensor]:
        table: Table[Row] = Table(kind(model, len(of)))
        rows = [Row(token_noise(0, 0, i, 36), SamplingConfig(), 20) for i in range(len(of))]
        table.begin(rows, tokens[:, :20], of)
        found: dict[int, list[int]] = {i: [] for i in range(len(of))}
        sums = torch.zeros(len(of))
        for together, chosen, nats in table:
            for row, token, cost in zip(together, chosen.tolist(), nats.tolist(), strict=True):
                found[rows.index(row)].append(token)
                sums[rows.index(row)] += cost
        return found, sums

    at_once, extend, sizes = drawn(), ImageGPT.extend, []

    def watched(self: ImageGPT, tokens: Tensor, *rest: Any, **named: Any) -> Tensor:
        sizes.append(len(tokens))
        return extend(self, tokens, *rest, **named)

    monkeypatch.setattr(ImageGPT, "extend", watched)
    monkeypatch.setattr(packing, "PASS_BYTES", 2 * 21 * 4 * 64 * 4)
    tokens_in_groups, nats = drawn()
    assert tokens_in_groups == at_once[0] and all(len(row) == 16 for row in tokens_in_groups.values())
    assert (nats - at_once[1]).abs().max() < 1e-4
    assert sizes == [2, 2, 1, *[7] * 15]  # nothing is read behind the last token


@pytest.mark.parametrize("kind", [Decoder, RowDecoder, PackedDecoder, *ROUNDED])
@pytest.mark.parametrize("known", [0, 1, 17, 35])
def test_a_prefill_in_place_is_one_that_was_copied(model: ImageGPT, kind: type[Decoder], known: int) -> None:
    tokens = some_tokens(3, model.config)
    expected, decoder = decoded(model, kind, tokens, known), kind(model, 3)
    logits, cache = decoder.prefill(tokens[:, :known], in_place=True)
    decoder.fill(torch.arange(3), cache, torch.arange(3))
    parts = [logits.clone(), *(decoder.step(tokens[:, t]).clone() for t in range(known, 35))]
    assert (torch.stack(parts, 1) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("kind", [Decoder, RowDecoder, *ROUNDED])
@pytest.mark.parametrize("guided", [False, True])
def test_pictures_with_a_prompt_each_need_one_cache(
    model: ImageGPT, kind: type[Decoder], guided: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = some_tokens(3, model.config)

    def drawn() -> list[list[int]]:
        table: Table[Row] = Table(GuidedDecoder(kind, model, 3) if guided else kind(model, 3))
        rows = [Row(token_noise(0, 0, i, 36), SamplingConfig(), 20) for i in range(3)]
        table.begin(rows, tokens[:, :20], range(3))
        return [chosen.tolist() for _, chosen, _ in table]

    at_once = drawn()
    with monkeypatch.context() as patch:
        patch.setattr(kind, "prompt_cache", None)
        assert drawn() == at_once
    monkeypatch.setattr(packing, "PASS_BYTES", 1)  # a group for each prompt, which is copied into its row
    assert drawn() == at_once


def test_rows_stand_where_they_like_join_leave_and_change_places(model: ImageGPT) -> None:
    check_rows_apart(model, PackedDecoder, 1e-4)
    check_rows_apart(model.double(), RowDecoder, 1e-12)


@needs_compiler
def test_int8_rows_apart_are_bit_for_bit_those_of_rows_alone(model: ImageGPT) -> None:
    check_rows_apart(model, Int8Decoder, 1e-12)


def alone(model: ImageGPT, kind: type[Decoder], tokens: Tensor) -> Tensor:
    """What each row should give: in int8 what it gives by itself, else the network's own."""
    if kind is not Int8Decoder:
        return model(tokens)
    return torch.cat([decoded(model, kind, row, 0) for row in tokens.split(1)])


def check_rows_apart(model: ImageGPT, kind: type[RowDecoder], bound: float) -> None:
    tokens = some_tokens(4, model.config)
    plain = alone(model, kind, tokens)
    decoder = kind(model, 3)
    at = {0: 5, 1: 0, 2: 30}  # picture in each row: how many pixels are known
    picture = {0: 0, 1: 1, 2: 2}
    for row, known in at.items():
        logits = start(decoder, tokens[row : row + 1, :known], torch.tensor([0]), torch.tensor([row]))
        assert (logits[0] - plain[row, known]).abs().max() < bound

    def steps(count: int) -> None:
        for _ in range(count):
            taken = torch.stack([tokens[picture[row], min(at[row], 35)] for row in range(3)])
            logits = decoder.step(taken)
            for row in range(3):
                at[row] += 1
                if at[row] < 36:
                    assert (logits[row] - plain[picture[row], at[row]]).abs().max() < bound

    steps(8)  # the third row passes its end and harms nobody
    picture[2], at[2] = 3, 12
    start(decoder, tokens[3:, :12], torch.tensor([0]), torch.tensor([2]))
    steps(4)
    decoder.copy(0, 1)
    decoder.copy(2, 0)
    picture = {0: picture[2], 1: picture[0], 2: picture[2]}
    at = {0: at[2], 1: at[0], 2: at[2]}
    steps(6)


@pytest.mark.parametrize("kind", [RowDecoder, PackedDecoder, *ROUNDED])
def test_the_first_rows_step_alone_and_a_row_takes_another_s_place(model: ImageGPT, kind: type[RowDecoder]) -> None:
    tokens = some_tokens(2, model.config)
    plain = alone(model, kind, tokens)
    decoder = kind(model, 3)
    start(decoder, tokens[:1, :4], torch.tensor([0, 0]), torch.tensor([0, 1]))
    start(decoder, tokens[1:, :20], torch.tensor([0]), torch.tensor([2]))
    assert (decoder.step(tokens[:1, 4]) - plain[0, 5]).abs().max() < 1e-4
    assert decoder.cache.slot.tolist() == [6, 5, 21]
    decoder.copy(2, 1)
    for t in range(5, 9):
        logits = decoder.step(torch.stack([tokens[0, t], tokens[1, t + 15]]))
        assert (logits - torch.stack([plain[0, t + 1], plain[1, t + 16]])).abs().max() < 1e-4


EXACT = SamplingConfig(speed="exact")


def divergence(exact: Tensor, rounded: Tensor) -> Tensor:
    """Kullback-Leibler divergence of every pixel in nats."""
    logs, others = exact.log_softmax(-1), rounded.log_softmax(-1)
    return (logs.exp() * (logs - others)).sum(-1)


@pytest.mark.parametrize("kind", ROUNDED)
def test_rounded_weights_keep_distribution_and_nats(model: ImageGPT, kind: type[Decoder]) -> None:
    tokens = some_tokens(4, model.config)
    exact, rounded = model(tokens), decoded(model, kind, tokens, 0)
    assert (exact - rounded).abs().max() > 1e-6, "nothing was rounded"
    assert divergence(exact, rounded).max() < 0.005
    change = cross_entropy(rounded, tokens) / cross_entropy(exact, tokens) - 1
    assert abs(change) < 0.005


@pytest.mark.parametrize("kind", [Decoder, RowDecoder, PackedDecoder, *ROUNDED])
def test_drawn_frequencies_are_the_model_s_probabilities(kind: type[Decoder], monkeypatch: pytest.MonkeyPatch) -> None:
    """Chi-square over all 64 three-pixel beginnings of 20,000 draws."""
    small = lively(ImageGPTConfig(layers=1, width=64, heads=2, side=2, colors=4), torch.float32)
    small.palette = Palette(np.array([[-1.0, -1, -1], [-0.3, -0.3, -0.3], [0.3, 0.3, 0.3], [1, 1, 1]]))
    monkeypatch.setattr("nextpixel.drawing.sampling.choose_decoder", lambda *_: kind)
    tokens = torch.cat(
        [small.palette.encode(draw(small, None, n=10_000, sampling=SamplingConfig(seed=s)).images) for s in (0, 1)]
    )
    every = torch.cartesian_prod(*[torch.arange(4)] * 3)
    logs = small(torch.cat([every, every[:, :1]], 1)).log_softmax(-1)[:, :3].gather(-1, every[..., None])
    expected = logs[..., 0].sum(1).exp().numpy() * 20_000
    seen = np.bincount((tokens[:, :3] * torch.tensor([16, 4, 1])).sum(1), minlength=64)
    assert ((seen - expected) ** 2 / expected).sum() < 118.6  # the 99.99% quantile of 63 degrees of freedom


@needs_compiler
@pytest.mark.parametrize("where", ["blocks.1.mlp.down.weight", "blocks.0.attention.qkv.weight", "token_embedding"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_stays_none_in_int8(model: ImageGPT, where: str, value: float) -> None:
    tokens = some_tokens(2, model.config)
    with torch.no_grad():
        model.get_parameter(where)[int(tokens[0, 0]) if where == "token_embedding" else 0] = value
    assert not decoded(model, Int8Decoder, tokens, 20)[0].isfinite().any()


@needs_compiler
def test_a_spoiled_picture_leaves_its_row_clean(model: ImageGPT) -> None:
    tokens = some_tokens(2, model.config)
    decoder = Int8Decoder(model, 1)
    before = start(decoder, tokens[:1, :5]).clone()
    for scales in decoder.cache.parts[2:]:
        scales[..., 6:] = float("inf")  # as a picture leaves it that came to infinite activations
    assert torch.equal(start(decoder, tokens[:1, :5]), before)
    assert torch.equal(decoder.step(tokens[:1, 5]), decoded(model, Int8Decoder, tokens[:1], 5)[:, 1])


@needs_compiler
def test_the_cache_s_scales_do_not_follow_torch_s_default_dtype(model: ImageGPT) -> None:
    tokens = some_tokens(2, model.config)
    expected = decoded(model, Int8Decoder, tokens, 5)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(decoded(model, Int8Decoder, tokens, 5), expected)
    finally:
        torch.set_default_dtype(torch.float32)


@needs_compiler
def test_in_int8_a_row_does_not_depend_on_the_others(model: ImageGPT) -> None:
    tokens, kind = some_tokens(5, model.config), Int8Decoder
    together = decoded(model, kind, tokens, 7)
    assert all(torch.equal(decoded(model, kind, tokens[i : i + 1], 7)[0], together[i]) for i in range(5))


@needs_compiler
def test_in_int8_a_row_does_not_depend_on_the_number_of_threads(model: ImageGPT) -> None:
    tokens, before, found = some_tokens(5, model.config), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(decoded(model, Int8Decoder, tokens, 7))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@needs_compiler
def test_a_copied_int8_network_has_weights_of_its_own(model: ImageGPT) -> None:
    tokens = some_tokens(2, model.config)
    network = packed_network(model, "int8")
    copied = copy.deepcopy(network)
    assert copied.blocks[0].table.tolist() != network.blocks[0].table.tolist()
    expected = network.extend(tokens[:, :9], Int8Cache(model.config, 2, 36))
    assert torch.equal(copied.extend(tokens[:, :9], Int8Cache(model.config, 2, 36)), expected)


@needs_compiler
def test_attention_of_nothing_but_zeros_is_the_mean_of_the_values() -> None:
    """Normalised queries and keys too."""
    cache = kernels.Cache(*torch.zeros(2, 1, 1, 1, 48, 16, dtype=torch.uint8), *torch.ones(2, 1, 1, 1, 48))
    zeros, values = torch.zeros(1, 1, 20, 16), torch.randn(1, 1, 20, 16, generator=torch.Generator().manual_seed(0))
    y = kernels.attend(side_by_side(zeros, zeros, values), cache, torch.tensor([0]), qk_norm=True)
    assert (y[0, -1, 0] - values[0, 0].mean(0)).abs().max() < 0.02


def test_the_mode_is_chosen_once_for_the_whole_call(monkeypatch: pytest.MonkeyPatch) -> None:
    model = lively(CLASSIC, torch.float32)
    model.palette = Palette(np.random.default_rng(0).uniform(-1, 1, (12, 3)))
    monkeypatch.setattr(decoding_module, "FAST_FROM", 0)
    whole = draw(model, None, n=6)
    monkeypatch.setattr("nextpixel.drawing.sampling.MAX_ROWS", 2)
    assert draw(model, None, n=6).mode == whole.mode != draw(model, None, n=6, sampling=EXACT).mode == Decoder.name


def test_what_auto_comes_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "load", lambda: object())
    large = lively(ImageGPTConfig(layers=4, width=512, heads=8, side=16, colors=512), torch.float32)
    odd = lively(ImageGPTConfig(layers=4, width=520, heads=8, side=16, colors=512), torch.float32)
    assert choose_decoder(lively(CLASSIC, torch.float32), 10, 36) is Decoder  # too little work
    assert choose_decoder(lively(CLASSIC, torch.float64), 10**9, 36, independent_rows=True) is RowDecoder
    assert choose_decoder(large, 4, 256) is choose_decoder(large, 5_000, 256, independent_rows=True) is Int8Decoder
    assert choose_decoder(large, 4, 256, "exact") is Decoder
    assert choose_decoder(odd, 4, 256) is PackedDecoder
    monkeypatch.setattr(kernels, "load", lambda: None)
    assert choose_decoder(large, 4, 256) is PackedDecoder


def test_much_work_on_cuda_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    model = lively(CLASSIC, torch.float32)
    monkeypatch.setattr(ImageGPT, "device", torch.device("cuda"))
    monkeypatch.setattr(decoding_module, "can_compile", lambda device: True)
    work = int(decoding_module.COMPILED_FROM / model.config.parameters) + 1
    assert choose_decoder(model, work, 1) is CompiledDecoder
    for version, kind in (("2.12.1", RowDecoder), ("2.13.0", CompiledDecoder)):  # of a server's thread
        monkeypatch.setattr(torch, "__version__", TorchVersion(version))
        assert choose_decoder(model, work, 1, independent_rows=True, in_thread=True) is kind
        with ThreadPoolExecutor() as pool:
            assert pool.submit(choose_decoder, model, work, 1, independent_rows=True).result() is kind
        assert choose_decoder(model, work, 1, independent_rows=True) is CompiledDecoder
    assert choose_decoder(model, work, 1, "exact") is choose_decoder(model, 8, 36) is Decoder
    assert choose_decoder(model, 8, 36, independent_rows=True) is RowDecoder


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """torch.compile's counters; what it captures, as one graph or not at all, runs without a compiler."""
    compile = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda function, *, mode, **options: compile(function, backend="eager", **options)
    )
    compiled_step.cache_clear()
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    yield torch._dynamo.utils.counters["stats"]
    compiled_step.cache_clear()
    torch.compiler.reset()


def test_every_step_of_every_drawing_is_one_captured_graph(captured: Any) -> None:
    model = unlike(MODERN)
    check_rows_apart(model, CompiledDecoder, 1e-4)
    tokens = some_tokens(3, MODERN)
    assert (decoded(model, CompiledDecoder, tokens, 30) - model(tokens)[:, 30:]).abs().max() < 1e-4
    assert captured["unique_graphs"] == 1


def test_steps_of_many_numbers_of_rows_are_compiled(captured: Any) -> None:
    model = lively(ImageGPTConfig(layers=1, width=16, heads=2, side=3, colors=12), torch.float32)
    for rows in range(1, 11):
        tokens = torch.randint(12, (rows, 9), generator=torch.Generator().manual_seed(rows))
        assert (decoded(model, CompiledDecoder, tokens, 6) - model(tokens)[:, 6:]).abs().max() < 1e-4
    assert captured["unique_graphs"] == 10


@pytest.mark.slow
@needs_compiler
def test_compiled_steps_draw_what_the_network_says() -> None:
    compiled_step.cache_clear()
    for config in (CLASSIC, MODERN):
        model, tokens = unlike(config), some_tokens(3, config)
        assert (decoded(model, CompiledDecoder, tokens, 17) - model(tokens)[:, 17:]).abs().max() < 1e-4


def test_packed_weights_are_kept_and_made_again_when_the_weights_change() -> None:
    model = lively(CLASSIC, torch.float32)
    kind = PackedDecoder
    first = packed_network(model, "fp32")
    assert packed_network(model, "fp32") is first
    names = list(model.state_dict())
    with torch.no_grad():
        model.blocks[1].mlp.up.weight.mul_(1.5)
    tokens = some_tokens(2, CLASSIC)
    assert packed_network(model, "fp32") is not first
    assert (decoded(model, kind, tokens, 3) - model(tokens)[:, 3:]).abs().max() < 1e-4
    assert list(model.state_dict()) == names
    assert torch.equal(copy.deepcopy(model)(tokens), model(tokens))


@pytest.mark.parametrize("change", ["the fused Adam", ".data"])
def test_changes_that_torch_does_not_count_are_seen(change: str) -> None:
    model = lively(CLASSIC, torch.float32).requires_grad_(True)
    kind = PackedDecoder
    tokens = some_tokens(2, CLASSIC)
    before = decoded(model, kind, tokens, 3)
    if change == ".data":
        model.head.weight.data.mul_(1.5)
    else:
        cross_entropy(model(tokens), tokens).backward()
        optimizers = optim.adam(model)
        optim.set_rate(optimizers, 0.1)
        optimizers[0].step()
    with torch.no_grad():
        plain = model(tokens)[:, 3:]
    assert (plain - before).abs().max() > 0.01
    assert (decoded(model, kind, tokens, 3) - plain).abs().max() < 1e-4


@pytest.mark.parametrize("kind", [RowDecoder, PackedDecoder, *ROUNDED])
def test_a_prompt_that_leaves_one_token_stays_on_the_last_slot(kind: type[RowDecoder]) -> None:
    model = lively(CLASSIC, torch.float32)
    decoder = kind(model, 1)
    start(decoder, some_tokens(1, CLASSIC)[:, :-1])  # the start vector and T - 1 tokens fill all slots
    assert decoder.cache.slot.tolist() == [35]
    decoder.step(torch.zeros(1, dtype=torch.int64))
    assert decoder.cache.slot.tolist() == [35]


def test_quantised_rows_are_off_by_at_most_half_a_step() -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    weight[3] = 0
    quantised, scale = kernels.quantise(weight)
    assert ((quantised * scale[:, None] - weight).abs() <= scale[:, None] / 2 + 1e-7).all()
    assert quantised.abs().amax(1).tolist() == [127] * 3 + [0] + [127] * 4


def in_groups(x: Tensor) -> Tensor:
    """x (..., C) as the kernels round it: 8 bits, with a scale for each 64 numbers."""
    parts = []
    for part in x.split(64, -1):
        top = part.abs().amax(-1, keepdim=True).clamp_min(1e-30)
        parts.append((part * (127 / top)).round() * (top / 127))
    rounded = torch.cat(parts, -1)
    assert ((rounded - x).double().norm(dim=-1) <= 0.0316 * x.double().norm(dim=-1)).all()
    return rounded


def off(y: Tensor, *exact: Tensor) -> float:
    """How far rows of y are at most from one of these: with rounded inputs, or, as some processors do it, without."""
    y = y.double()
    return min(float(((y - x.double()).norm(dim=-1) / x.double().norm(dim=-1)).max()) for x in exact)


def side_by_side(*parts: Tensor) -> Tensor:
    """(B, Q, 3, N, E) of q, k and v (B, N, Q, E)."""
    return torch.stack(parts, dim=1).permute(0, 3, 1, 2, 4)


@needs_compiler
@pytest.mark.parametrize("width", [8, 16, 40, 64, 96])
def test_the_attention_kernel_is_torch_s_attention(width: int) -> None:
    """Over a cache of 50 slots filled at once and one at a time, and in rows of any order."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 3, 2, 1, width, generator=generator)
    read = torch.randn(2, 2, 2, 49, width, generator=generator)
    slots, numbers = kernels.padded(50), kernels.padded(width)
    stored = torch.randint(0, 256, (2, 1, 3, 2, slots, numbers), dtype=torch.uint8, generator=generator)
    scales = torch.rand(2, 3, 2, slots, generator=generator)
    cache = kernels.Cache(*stored, *scales[:, None])
    of, positions = torch.tensor([0, 0, 1]), torch.tensor([0, 17, 49])
    kernels.attend(side_by_side(read[0][of], read[0][of], read[1][of]), cache, torch.zeros(3, dtype=torch.int64))
    y = kernels.attend(side_by_side(q, k, v), cache, positions).transpose(1, 2)
    for row, last in enumerate(positions.tolist()):
        whole = []
        for part, new, scale in ((read[0], k, scales[0]), (read[1], v, scales[1])):
            seen = torch.cat([part[of[row], :, :last], new[row]], dim=1)
            small, expected = kernels.quantise(seen)
            assert torch.allclose(scale[row, :, : last + 1], expected)
            whole.append(small * expected[..., None])
        exact = torch.nn.functional.scaled_dot_product_attention(q[row], *whole)
        scores = in_groups(q[row] / width**0.5) @ whole[0].transpose(1, 2)  # (N, 1, slots)
        shares = (scores - scores.amax(-1, keepdim=True)).exp()
        rounded = in_groups(shares * scales[1, row, :, None, : last + 1]) @ small.float()
        assert off(y[row].flatten(), exact.flatten(), (rounded / shares.sum(-1, keepdim=True)).flatten()) < 1e-3


@needs_compiler
def test_attention_survives_scores_of_any_size() -> None:
    read = torch.full((1, 1, 39, 16), -300.0)
    read[0, 0, 1::2] = 0
    cache = kernels.Cache(*torch.zeros(2, 1, 1, 1, 48, 16, dtype=torch.uint8), *torch.ones(2, 1, 1, 1, 48))
    values = torch.randn(1, 1, 39, 16, generator=torch.Generator().manual_seed(0))
    kernels.attend(side_by_side(read, read, values), cache, torch.tensor([0]))
    q, k = torch.full((2, 1, 1, 1, 16), 300.0)
    y = kernels.attend(side_by_side(q, k, torch.ones(1, 1, 1, 16)), cache, torch.tensor([39]))
    assert (y - 1).abs().max() < 1e-4


@needs_compiler
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8, 15, 16, 23, 1030])
@pytest.mark.parametrize("activation", [None, "quick-gelu", "squared-relu"])
def test_the_int8_kernel_is_a_matrix_product(rows: int, activation: Activation | None) -> None:
    """Of rows rounded to 8 bits in groups, also where a number is far from the others; whatever the other rows are."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(-127, 128, (48, 192), dtype=torch.int8, generator=generator)
    scale, x = 0.01 * torch.rand(48, generator=generator), torch.randn(rows, 192, generator=generator)
    x[0] *= 1e4
    x[::3, 7] *= 20
    exact = [inputs @ (weight * scale[:, None]).T for inputs in (in_groups(x), x)]
    if activation is not None:
        exact = [y.relu().square() if activation == "squared-relu" else y * torch.sigmoid(1.702 * y) for y in exact]
    ordered = kernels.pack(weight)
    y = kernels.multiply(x, ordered, scale, activation=activation)
    assert off(y, *exact) < 1e-3
    assert torch.equal(kernels.multiply(x[rows // 2 :], ordered, scale, activation=activation), y[rows // 2 :])


@needs_compiler
@pytest.mark.parametrize("size", [1e-25, 1e18])
def test_numbers_whose_squares_no_float_holds_are_rounded_as_others(size: float) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(-127, 128, (48, 192), dtype=torch.int8, generator=generator)
    x = size * torch.randn(4, 192, generator=generator)
    x[:, 7] = 20 * size
    exact = [inputs @ weight.float().T for inputs in (in_groups(x), x)]
    assert off(kernels.multiply(x, kernels.pack(weight), torch.ones(48)), *exact) < 1e-3


@needs_compiler
def test_the_int8_kernel_normalises_before_and_adds_after() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(-127, 128, (64, 192), dtype=torch.int8, generator=generator)
    scale, x, add = torch.rand(64, generator=generator), torch.randn(5, 192, generator=generator), torch.randn(5, 64)
    norm = Norm(192)
    norm.gain.data = torch.rand(192, generator=generator)
    norm.requires_grad_(False)
    exact = [add + inputs @ (weight * scale[:, None]).T for inputs in (in_groups(norm(x)), norm(x))]
    y = kernels.multiply(x, kernels.pack(weight), scale, gain=norm.gain.detach(), add=add)
    assert off(y.flatten(), *(x.flatten() for x in exact)) < 1e-3


@needs_compiler
@pytest.mark.parametrize("processor", ["haswell", "alderlake", "x86-64"])
def test_the_kernels_of_other_processors_are_the_same_product(processor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if platform.machine() != "x86_64" or not _runs(processor):
        pytest.skip(f"needs what a {processor} can do")
    without = ["-mno-avx512f", "-mno-avx512vnni"] if processor != "x86-64" else []
    flags = [flag for flag in kernels.FLAGS if flag not in ("-march=native", "-O3")]  # -O3 compiles for 20 s there
    monkeypatch.setattr(kernels, "FLAGS", [*flags, "-O1", f"-march={processor}", *without])
    other = kernels.build()
    assert other.lanes() == (4 if processor == "x86-64" else 8)
    monkeypatch.setattr(kernels, "load", lambda: other)
    for activation in (None, "quick-gelu", "squared-relu"):
        test_the_int8_kernel_is_a_matrix_product(23, activation)
    test_the_int8_kernel_normalises_before_and_adds_after()
    test_the_attention_kernel_is_torch_s_attention(40)
    test_attention_survives_scores_of_any_size()
    for config in (CLASSIC, MODERN):
        test_rounded_weights_keep_distribution_and_nats(unlike(config), Int8Decoder)
        test_in_int8_a_row_does_not_depend_on_the_others(unlike(config))


@pytest.mark.parametrize("processor", ["armv8.2-a+dotprod", "armv8-a"])
def test_the_kernels_on_an_emulated_arm(processor: str, tmp_path: Path) -> None:
    compiler, emulator = shutil.which("aarch64-linux-gnu-gcc"), shutil.which("qemu-aarch64")
    if compiler is None or emulator is None:
        pytest.skip("needs gcc-aarch64-linux-gnu and qemu-user")
    source, program = resources.files("nextpixel.network.int8") / "kernels.c", str(tmp_path / "loops")
    flags = ["-O3", f"-march={processor}", "-static", "-Wno-psabi", "-include", str(source)]
    subprocess.run([compiler, *flags, str(Path(__file__).with_name("loops.c")), "-o", program, "-lm"], check=True)
    done = subprocess.run([emulator, "-cpu", "max", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.startswith("4 lanes"), done.stdout


def _runs(processor: str) -> bool:
    needs = {"haswell": {"avx2", "fma"}, "alderlake": {"avx2", "fma", "avx_vnni"}, "x86-64": set[str]()}[processor]
    try:
        return needs <= set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        return not needs


@pytest.fixture
def quick_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of the compiler's time, where the library's speed does not matter."""
    monkeypatch.setattr(kernels, "FLAGS", ["-O0" if flag == "-O3" else flag for flag in kernels.FLAGS])


@needs_compiler
@pytest.mark.usefixtures("quick_build")
def test_three_threads_build_at_once_and_all_have_the_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXTPIXEL_CACHE", str(tmp_path))
    with ThreadPoolExecutor(3) as pool:
        found = [future.result() for future in [pool.submit(kernels.build) for _ in range(3)]]
    assert all(found)
    (built,) = (tmp_path / "kernels").iterdir()
    assert built.suffix == ".so"


@needs_compiler
@pytest.mark.usefixtures("quick_build")
def test_a_damaged_library_is_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process of its own, which a library that is mapped beyond its end would kill."""
    monkeypatch.setenv("NEXTPIXEL_CACHE", str(tmp_path / "cache"))
    assert kernels.build() is not None
    (built,) = (tmp_path / "cache" / "kernels").iterdir()
    built.rename(tmp_path / "whole.so")
    compiler = tmp_path / "cc"  # which needs no second for each length
    compiler.write_text(f'#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\ncp {tmp_path}/whole.so "$2"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    code = """if True:
        import pathlib, sys
        from nextpixel.network.int8 import kernels
        kernels.build()
        [built] = pathlib.Path(sys.argv[1]).iterdir()
        whole = built.read_bytes()
        lengths = [0, 1, 64, *(len(whole) * n // 10 for n in range(1, 10)), len(whole) - 4096, len(whole) - 1]
        damaged = [whole[:length] for length in lengths] + [whole[:100] + bytes(8000) + whole[8100:]]
        for content in damaged:
            built.unlink()  # else the library in use would change
            built.write_bytes(content)
            assert kernels.build() is not None and built.read_bytes() == whole, len(content)
        print(len(damaged))
    """
    command = [sys.executable, "-c", code, str(built.parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "15\n"), done.stderr


@needs_compiler
@pytest.mark.usefixtures("quick_build")
def test_a_cache_from_which_nothing_may_be_run_costs_a_second_only(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    def library(path: str) -> ctypes.CDLL:
        opened.append(path)
        if len(opened) == 1:
            raise OSError("failed to map segment from shared object")  # noexec
        return ctypes.CDLL(path)

    monkeypatch.setattr(kernels, "ctypes", SimpleNamespace(**vars(ctypes) | {"CDLL": library}))
    assert kernels.build() is not None and len(opened) == 2


def test_without_a_compiler_there_are_no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(kernels.shutil, "which", lambda _: None)
    assert kernels.build() is None
    monkeypatch.setenv("CC", "false")
    assert kernels.build() is None


@pytest.mark.parametrize("compiled", ["in the cache", "in a temporary folder"])
def test_a_compiler_that_takes_too_long_is_waited_for_once(
    compiled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started, slow = tmp_path / "started", tmp_path / "cc"
    slow.write_text(f"#!/bin/sh\necho >> {started}\nsleep 50\n")
    slow.chmod(0o755)
    cache = tmp_path / "cache"
    if compiled != "in the cache":
        cache.touch()
    monkeypatch.setenv("NEXTPIXEL_CACHE", str(cache))
    monkeypatch.setenv("CC", str(slow))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(kernels, "COMPILE_SECONDS", 0.3)
    start = time.monotonic()
    assert [kernels.build() for _ in range(3)] == [None] * 3
    assert started.read_text().count("\n") == 1
    assert capsys.readouterr().err.count("did not compile the CPU kernels in 0.3 s") == 1
    assert time.monotonic() - start < 10


@needs_compiler
def test_no_stack_grows_with_the_picture(tmp_path: Path) -> None:
    flags = [*kernels.FLAGS, "-Wvla", "-Walloca", "-Wframe-larger-than=16384", "-Werror"]
    source = str(resources.files("nextpixel.network.int8") / "kernels.c")
    subprocess.run(["cc", *flags, source, "-o", str(tmp_path / "loops.so"), "-lm"], check=True)


@needs_compiler
def test_a_picture_of_512_x_512_fits_a_small_stack() -> None:
    slots, width = 512 * 512, 32
    cache = kernels.Cache(
        *(torch.zeros(1, 1, 1, slots, width, dtype=torch.uint8) for _ in range(2)),
        *(torch.ones(1, 1, 1, slots) for _ in range(2)),
    )
    qkv = torch.randn(1, 4, 3, 1, width, generator=torch.Generator().manual_seed(0))
    found = []

    def look() -> None:
        torch.set_num_threads(1)
        found.append(kernels.attend(qkv, cache, torch.tensor([slots - 4])))

    before, threads = threading.stack_size(256 * 1024), torch.get_num_threads()
    try:
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
    finally:
        threading.stack_size(before)
        torch.set_num_threads(threads)
    assert found[0].isfinite().all() and found[0].shape == (1, 4, 1, width)
