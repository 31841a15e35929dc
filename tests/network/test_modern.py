"""What the modern preset adds to the network, part by part."""

import dataclasses
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import figures, photos, settings
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import nextpixel
from nextpixel import ImageGPT, ImageGPTConfig, InputError, load, save
from nextpixel.checkpoints import Run
from nextpixel.config import MODERN, PretrainConfig
from nextpixel.network.losses import cross_entropy
from nextpixel.network.positions import Positions, raster, rotate
from nextpixel.tokens.palette import Palette
from nextpixel.training import pretraining
from nextpixel.training.optim import linear_rate, muon, set_rate

CLASSIC = ImageGPTConfig(layers=3, width=32, heads=4, side=4, colors=10)
OPTIONS = [{name: value} for name, value in MODERN.items()] + [MODERN]


def lively(**options: object) -> ImageGPT:
    """A model with these options, all its weights random, so that each of them acts."""
    model = ImageGPT(dataclasses.replace(CLASSIC, **options), seed=3).double().eval()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator).double() * 0.2)
    return model.requires_grad_(False)


def some_tokens(batch: int = 3) -> Tensor:
    return torch.randint(0, 10, (batch, 16), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options))
def test_each_option_changes_the_model_and_keeps_it_causal_and_cached(options: dict[str, object]) -> None:
    model, tokens = lively(**options), some_tokens()
    logits = model(tokens)
    if list(options) != ["zero_projections"]:  # which only changes the first weights
        classic = lively().state_dict()
        shared = {name: value for name, value in classic.items() if name in model.state_dict()}
        other = lively(**options)
        other.load_state_dict(shared, strict=False)
        assert (other(tokens) - lively()(tokens)).abs().max() > 1e-3
    for pixel in range(16):
        changed = tokens.clone()
        changed[:, pixel] = (changed[:, pixel] + 1) % 10
        after = model(changed)
        assert torch.equal(after[:, : pixel + 1], logits[:, : pixel + 1])
        assert pixel == 15 or (after[:, pixel + 1 :] != logits[:, pixel + 1 :]).any(-1).all()
    for chunks in ([0] + [1] * 15, [5, 1, 4, 2, 1, 1, 1], [15]):
        cache, parts, at = model.new_cache(3), [], 0
        for chunk in chunks:
            parts.append(model.extend(tokens[:, at : at + chunk], cache))
            at += chunk
        assert (torch.cat(parts, 1) - logits).abs().max() < 1e-12


def test_all_parameters_of_a_modern_model_are_counted_and_trained() -> None:
    model = lively(**MODERN).requires_grad_(True)
    assert sum(p.numel() for p in model.parameters()) == model.config.parameters
    cross_entropy(model(some_tokens()), some_tokens()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_a_new_modern_model_knows_nothing() -> None:
    model = ImageGPT(dataclasses.replace(CLASSIC, **MODERN))
    assert cross_entropy(model(some_tokens()), some_tokens()).item() == pytest.approx(math.log(10), abs=1e-6)
    assert not model.blocks[1].attention.out.weight.any() and not model.blocks[1].mlp.down.weight.any()


def test_rotary_scores_depend_on_the_step_between_two_pixels_alone() -> None:
    config = dataclasses.replace(CLASSIC, positions="rotary", side=6)
    rotations = raster(config, torch.device("cpu")).rotations
    assert rotations is not None
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(8, generator=generator), torch.randn(8, generator=generator)

    def score(predicted: tuple[int, int], carried: tuple[int, int]) -> float:
        query, key = predicted[0] * 6 + predicted[1], carried[0] * 6 + carried[1] + 1  # slot t carries pixel t - 1
        turned_q = rotate(q.expand(1, 1, 1, 8), rotations[0, query : query + 1], rotations[1, query : query + 1])
        turned_k = rotate(k.expand(1, 1, 1, 8), rotations[2, key : key + 1], rotations[3, key : key + 1])
        return float((turned_q * turned_k).sum())

    above = score((3, 2), (2, 2))
    assert score((5, 4), (4, 4)) == pytest.approx(above, abs=1e-5)
    assert score((3, 2), (3, 1)) != pytest.approx(above, abs=1e-3)  # left is not above
    assert score((3, 2), (1, 2)) != pytest.approx(above, abs=1e-3)
    assert torch.equal(rotations[2, 0], torch.ones(4)) and not rotations[3, 0].any()  # the start vector is not turned


def test_logits_of_a_modern_layer_equal_the_formulas_written_out() -> None:
    config = ImageGPTConfig(**MODERN | {"logit_cap": 2.0}, layers=1, width=8, heads=2, side=2, colors=5)
    model = ImageGPT(config, seed=1).double()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    tokens = torch.tensor([[4, 0, 3, 1]])
    w = {name: p.detach() for name, p in model.named_parameters()}

    def unit(x: Tensor) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + torch.finfo(torch.float64).eps).sqrt()

    def norm(x: Tensor, gain: Tensor) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * gain

    def turned(x: Tensor, row: int, column: int) -> Tensor:  # head width 4: one angle for the row, one for the column
        a, b, c, d = x
        cos_y, sin_y, cos_x, sin_x = math.cos(row), math.sin(row), math.cos(column), math.sin(column)
        return torch.stack([a * cos_y - c * sin_y, b * cos_x - d * sin_x, a * sin_y + c * cos_y, b * sin_x + d * cos_x])

    first = unit(torch.stack([w["start"][0], *w["token_embedding"][tokens[0, :3]]]))
    h = w["blocks.0.mix"][0] * first + w["blocks.0.mix"][1] * first
    q, k, v = (norm(h, w["blocks.0.norm_1.gain"]) @ w["blocks.0.attention.qkv.weight"].T).split(8, -1)
    predicted, carried = [(0, 0), (0, 1), (1, 0), (1, 1)], [(0, 0), (0, 0), (0, 1), (1, 0)]
    heads = []
    for part in (slice(0, 4), slice(4, 8)):
        qs = torch.stack([turned(1.2 * unit(q[t, part]), *predicted[t]) for t in range(4)])
        ks = torch.stack([turned(1.2 * unit(k[t, part]), *carried[t]) for t in range(4)])
        scores = (qs @ ks.T / 2).masked_fill(torch.ones(4, 4).triu(1).bool(), float("-inf"))
        heads.append(scores.softmax(-1) @ v[:, part])
    h = h + torch.cat(heads, -1) @ w["blocks.0.attention.out.weight"].T
    y = norm(h, w["blocks.0.norm_2.gain"]) @ w["blocks.0.mlp.up.weight"].T
    h = h + y.clamp_min(0).square() @ w["blocks.0.mlp.down.weight"].T
    logits = 2 * torch.tanh(norm(h, w["norm.gain"]) @ w["head.weight"].T / 2)
    assert (model(tokens)[0] - logits).abs().max() < 1e-6  # the table of angles is fp32


def test_rotations_first_made_while_drawing_serve_training_too() -> None:
    config = ImageGPTConfig(**MODERN, layers=1, width=20, heads=1, side=3, colors=7)
    model, tokens = ImageGPT(config), torch.zeros(1, 9, dtype=torch.int64)
    raster.cache_clear()
    with torch.inference_mode():
        model(tokens)
    cross_entropy(model(tokens), tokens).backward()
    rotations = raster(config, torch.device("cpu")).rotations
    assert rotations is not None and not rotations.is_inference()


def test_muon_takes_the_matrices_of_the_blocks_and_adam_the_rest() -> None:
    model = ImageGPT(dataclasses.replace(CLASSIC, **MODERN))
    optimizers = muon(model)
    counts = [sum(p.numel() for group in o.param_groups for p in group["params"]) for o in optimizers]
    assert counts == [3 * 12 * 32 * 32, model.config.parameters - 3 * 12 * 32 * 32]
    set_rate(optimizers, 0.02)
    assert [o.param_groups[0]["lr"] for o in optimizers] == [0.02, 0.005]


def test_the_linear_schedule_is_constant_and_then_falls_to_zero() -> None:
    rates = [linear_rate(i, steps=100, warmup_steps=4, peak=1.0, cooldown_fraction=0.5) for i in range(100)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0] and rates[4:51] == [1.0] * 47
    assert rates[-1] == pytest.approx(1 / 50) and rates[75] == pytest.approx(0.5)
    assert linear_rate(0, steps=1, warmup_steps=0, peak=1.0, cooldown_fraction=1.0) == 1.0


def test_a_modern_model_is_kept_whole_and_is_none_of_transformers(tmp_path: Path) -> None:
    model = lively(**MODERN).float()
    model.palette = Palette(np.linspace(-1, 1, 30).reshape(10, 3).astype(np.float32))
    save(model, tmp_path / "modern")
    again = load(tmp_path / "modern")
    assert again.config == model.config
    assert torch.equal(again(some_tokens()), model(some_tokens()))
    with pytest.raises(InputError, match="cannot be saved for transformers"):
        save(model, tmp_path / "no", for_transformers=True)


def test_presets_are_bundles_of_options() -> None:
    assert PretrainConfig().model(512).is_classic
    modern = PretrainConfig(preset="modern").model(512)
    assert not modern.is_classic and modern.logit_cap == 15 and modern.positions == "rotary"
    plain = PretrainConfig(preset="modern", positions="learned", qk_norm="off").model(512)
    assert plain.positions == "learned" and not plain.qk_norm and plain.activation == "squared-relu"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"positions": "sine"}, "positions: expected one of learned, rotary"),
        ({"activation": "relu"}, "activation: expected one of quick-gelu, squared-relu"),
        ({"qk_norm": 1}, "qk_norm: expected true or false"),
        ({"logit_cap": -1.0}, "logit_cap: expected a number from 0 to 1,000,000"),
        ({"positions": "rotary", "width": 24, "heads": 4}, "multiple of 4, got 6"),
    ],
)
def test_options_that_make_no_network_are_refused(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        dataclasses.replace(CLASSIC, **options)


def modern_run(folder: Path, name: str, **changes: Any) -> Path:
    photos(folder)
    tiny = settings(folder, preset="modern", width=16, heads=2, warmup_steps=2, clip_norm=0.0) | changes
    nextpixel.pretrain(folder / "photos.npy", out=folder / name, cache=str(folder / "cache"), **tiny)
    return folder / name


def test_a_modern_run_resumes_bit_for_bit_with_the_state_of_both_optimisers(tmp_path: Path) -> None:
    whole = modern_run(tmp_path, "whole")
    copy = tmp_path / "copy"
    shutil.copytree(whole, copy)
    for step in Run(copy).steps():
        if step > 6:
            shutil.rmtree(Run(copy).folder(step))
    nextpixel.pretrain(resume=copy)
    ours, theirs = load(whole).state_dict(), load(copy).state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert figures(whole) == figures(copy)


class Wide(TorchDispatchMode):
    """Notes every float64 tensor off the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.dtype == torch.float64 and out.device.type != "cpu":
            self.found.append(str(func))
        return out


def test_rotations_need_no_float64_of_the_device() -> None:
    """mps has none; meta stands for it."""
    config = ImageGPTConfig(layers=1, width=16, heads=2, side=5, colors=4, **MODERN)
    with Wide() as wide:
        rotations = Positions.of(config, torch.device("meta"), torch.arange(25)).rotations
    assert (
        rotations is not None
        and wide.found == []
        and rotations.device.type == "meta"
        and rotations.dtype == torch.float32
    )


def test_a_branch_is_the_run_it_would_have_been(tmp_path: Path) -> None:
    short, long = modern_run(tmp_path, "short"), modern_run(tmp_path, "long", steps=20)
    branched = nextpixel.pretrain(branch=short, out=tmp_path / "branched", steps=20)
    assert all(torch.equal(tensor, branched.state_dict()[name]) for name, tensor in load(long).state_dict().items())
    assert figures(tmp_path / "branched") == figures(long)
    assert Run(tmp_path / "branched").facts()["branched_from"]["step"] == 6
    with pytest.raises(InputError, match="full rate"):
        nextpixel.pretrain(branch=short, out=tmp_path / "early", steps=1)
    with pytest.raises(InputError, match="`steps`"):
        nextpixel.pretrain(branch=short, out=tmp_path / "early")
    with pytest.raises(InputError, match="no recipe, split or other settings"):
        nextpixel.pretrain(branch=short, out=tmp_path / "early", steps=20, seed=1)
    with pytest.raises(InputError, match="steps: expected a whole number, got '20'"):
        nextpixel.pretrain(branch=short, out=tmp_path / "early", steps="20")
    with pytest.raises(InputError, match=r"^cooldown_fraction: "):
        nextpixel.pretrain(branch=short, out=tmp_path / "early", steps=20, cooldown_fraction=0)


@pytest.mark.parametrize(("every", "patience", "best"), [(1, 6, 6), (4, 1, 8)])
def test_the_patience_of_a_branch_counts_from_its_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int, patience: int, best: int
) -> None:
    """A branch from step 6, evaluated there or not, of a run whose validation rises."""
    monkeypatch.setattr(pretraining, "_evaluate", lambda *args: {"validation_nats": float(args[-1])})
    run = modern_run(tmp_path, "run", evaluate_every_steps=every, patience=patience)
    nextpixel.pretrain(branch=run, out=tmp_path / "branch", steps=20)
    branch = Run(tmp_path / "branch")
    assert branch.facts()["branched_from"]["step"] == 6 and branch.steps()[-1] == 12
    assert branch.best() == {"step": best, "nats": best} and branch.best_checkpoint() == branch.folder(best)


def test_a_run_of_a_cosine_has_no_branch(tmp_path: Path) -> None:
    run = modern_run(tmp_path, "cosine", schedule="cosine", steps=4)
    with pytest.raises(InputError, match="expected a linear schedule"):
        nextpixel.pretrain(branch=run, out=tmp_path / "other", steps=20)


def test_continuing_a_modern_model_takes_the_modern_recipe(tmp_path: Path) -> None:
    run = modern_run(tmp_path, "first", steps=4)
    nextpixel.pretrain(
        tmp_path / "photos.npy", init=str(run), out=tmp_path / "more", steps=2, batch_images=4, sample_images=0,
        cache=str(tmp_path / "cache"), threads=1, compile="off", device="cpu",
    )  # fmt: skip
    facts = Run(tmp_path / "more").facts()
    assert facts["config"]["preset"] == "modern" and facts["decisions"]["learning_rate"] == pytest.approx(0.002)
