import dataclasses

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nextpixel import SIZES, ImageGPT, ImageGPTConfig, InputError
from nextpixel.config import MODERN
from nextpixel.hardware import HARDWARE
from nextpixel.network.cost import (
    activation_bytes_per_image,
    choose_layout,
    flops_per_image,
    make_plan,
    memory,
)
from nextpixel.network.losses import cross_entropy

SMALL = ImageGPTConfig(layers=2, width=64, heads=2, side=8, colors=50)


@pytest.mark.parametrize("options", [{}, MODERN, {"objective": "masked"}], ids=["classic", "modern", "masked"])
def test_flops_equal_those_that_torch_counts(options: dict[str, object]) -> None:
    """torch's plain attention computes all T x T scores; a causal model needs half of them."""
    config = dataclasses.replace(SMALL, **options)
    model = ImageGPT(config).requires_grad_(True)
    tokens = torch.randint(0, 50, (3, 64))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        cross_entropy(model(tokens), tokens).backward()
    unneeded = full_square(config) / 2 if config.objective == "autoregressive" else 0
    assert counter.get_total_flops() == 3 * (flops_per_image(config) + unneeded)


def full_square(config: ImageGPTConfig) -> int:
    """FLOPs of attention over all T x T scores: forward and backward, 2 a multiply-add, 2 products, L blocks."""
    return 3 * 2 * 2 * config.tokens**2 * config.width * config.layers


def test_the_flops_of_the_paper_s_model_are_those_published() -> None:
    days = (flops_per_image(SIZES["s"]) + full_square(SIZES["s"]) / 2) * 128e6 / 8.64e19
    assert days == pytest.approx(0.9, abs=0.05)  # petaFLOP/s-days of Chen et al.'s S: a million steps of 128


@pytest.mark.parametrize("options", [{}, MODERN, {"objective": "masked"}, {"orientations": 8}], ids=str)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_saved_activations_are_what_autograd_keeps(options: dict[str, object], dtype: str, checkpointed: bool) -> None:
    config = ImageGPTConfig(layers=6, width=64, heads=2, side=16, colors=64, **options)
    model = ImageGPT(config)
    model.checkpoint_activations = checkpointed
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no address is used twice
        return tensor

    tokens = torch.randint(0, 64, (2, 256))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"):
            logits = model(tokens)
        cross_entropy(logits, tokens)
    found = sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in weights) / 2
    told = activation_bytes_per_image(config, dtype=dtype, checkpointed=checkpointed)
    transient = 256 * 8 * 64  # the loss's copies, which are not saved
    if checkpointed:  # the block being recomputed is not saved either
        whole = activation_bytes_per_image(config, dtype=dtype) - activation_bytes_per_image(
            dataclasses.replace(config, layers=5), dtype=dtype
        )
        transient += whole
    assert told - transient == pytest.approx(found, rel=0.05)


def test_the_parts_of_the_memory_add_up() -> None:
    config = SIZES["s"]
    need = memory(config, 4, dtype="fp32", compiled=False)
    assert need.weights == need.gradients == 4 * config.parameters and need.optimizer == 8 * config.parameters
    image = activation_bytes_per_image(config, dtype="fp32", compiled=False)
    assert need.activations + need.logits == 4 * image
    assert need.total == 16 * config.parameters + 4 * image
    muon = memory(config, 4, dtype="fp32", compiled=False, optimizer="muon")
    assert need.optimizer - muon.optimizer == 4 * 12 * 24 * 512 * 512
    quarter = memory(config, 4, dtype="fp32", compiled=False, shards=4)
    assert quarter.optimizer == 2 * config.parameters and quarter.weights < need.weights / 2


def test_the_simplest_layout_that_fits_is_chosen() -> None:
    assert choose_layout(SIZES["s"], 128, 141e9).name == "one device"
    assert not choose_layout(SIZES["s"], 16, 141e9, devices=8).checkpoint_activations
    assert choose_layout(SIZES["s"], 16, 141e9, devices=8).name == "data parallel"
    sharded = choose_layout(SIZES["xl"], 2, 80e9, devices=64)
    assert sharded.name == "sharded" and sharded.memory.total < 72e9
    tight = choose_layout(SIZES["l"], 8, 40e9)
    assert tight.memory.total < 36e9 and tight.micro_batch_images < 8
    with pytest.raises(InputError, match=r"one image at a time, got 21\.6 GB; it would fit with several devices"):
        choose_layout(SIZES["xl"], 1, 24e9)
    with pytest.raises(InputError, match="`checkpoint_activations`"):
        choose_layout(dataclasses.replace(SIZES["l"], side=64), 1, 32e9, checkpointed=False)


def test_a_plan_multiplies_out() -> None:
    plan = make_plan(SIZES["l"], HARDWARE["h200"], steps=1_000_000, batch_images=128, devices=64, utilisation=0.45)
    assert plan.images == 128_000_000 and plan.flops == 128_000_000 * plan.flops_per_image
    again = 4 / 3 if plan.layout.checkpoint_activations else 1
    assert plan.seconds == pytest.approx(plan.flops * again / (989e12 * 0.45 * 64))
    assert 0.00055 < plan.drawing_seconds_at_least / 1024 < 0.0007  # every weight read once a pixel
    with pytest.raises(InputError, match="multiple of the 3 devices"):
        make_plan(SIZES["s"], HARDWARE["h200"], steps=1, batch_images=128, devices=3)


def test_the_peak_is_that_of_the_dtype_that_trains() -> None:
    times = {}
    for name, dtype in (("h200", "auto"), ("h200", "bf16"), ("h200", "fp32"), ("v100", "auto")):
        plan = make_plan(SIZES["xs"], HARDWARE[name], steps=1000, batch_images=16, utilisation=0.5, dtype=dtype)
        assert plan.dtype == ("fp32" if dtype == "fp32" or name == "v100" else "bf16")
        times[name, dtype] = plan.seconds
    assert times["h200", "auto"] == times["h200", "bf16"]
    assert times["h200", "fp32"] == pytest.approx(times["h200", "bf16"] * 989 / 67)
    assert times["v100", "auto"] == pytest.approx(times["h200", "fp32"] * 67 / 15.7)
    with pytest.raises(InputError, match="dtype: v100 has no bf16"):
        make_plan(SIZES["xs"], HARDWARE["v100"], steps=1, batch_images=16, dtype="bf16")
