"""nextpixel plan"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from nextpixel.cli.arguments import parse, print_json, recipe_defaults, show
from nextpixel.config import OutputOptions, PretrainConfig, check_numbers, side_text, to_side
from nextpixel.errors import InputError
from nextpixel.progress import say

SCALES = {"k": 1e3, "m": 1e6, "b": 1e9}


@dataclass(frozen=True)
class PlanRun:
    """Estimate the memory per device, time and price of a pretraining run, without running anything.

    Accepts the settings of pretrain, or a recipe.
    """

    images: str | None = None
    """Number of training images, as in 50000 or 1.28M, or a source of images, to estimate the epochs."""
    hardware: str = "h200"
    """The device: b200, h200, h100, a100-80gb, a100-40gb, l40s, rtx4090 or v100; or a file written there by nextpixel
    bench --work train --out FILE.json, which has its measured speed."""
    count: int = 1
    """Number of devices."""
    hourly_rate: float | None = None
    """Price of one device per hour, in any currency."""
    utilisation: float | None = None
    """Model FLOPs utilisation, as a fraction of the peak; default: that of a --hardware file, or 0.4."""
    recipe: str | None = None
    """Name of a shipped recipe, or a TOML file of settings; other options override it."""
    config: PretrainConfig = field(default_factory=PretrainConfig)
    output: OutputOptions = field(default_factory=OutputOptions)


def run(argv: Sequence[str]) -> None:
    recipe = recipe_defaults(argv)
    args = parse(PlanRun, "plan", argv, None if recipe is None else PlanRun(config=recipe))
    from nextpixel.files import read_json
    from nextpixel.hardware import HARDWARE, measured_hardware
    from nextpixel.network.cost import ASSUMED_UTILISATION, make_plan
    from nextpixel.training.initial import continued, shape_at_most, with_side

    measured = args.hardware.endswith(".json")
    if args.config.device in ("cpu", "mps") and not measured:
        raise InputError(
            f"--device: expected auto or cuda, as plan is for the devices of --hardware ({', '.join(HARDWARE)}), got "
            f"{args.config.device}; pretrain prints the plan for this machine before it starts"
        )
    if args.hardware not in HARDWARE and not measured:
        raise InputError(
            f"--hardware: expected one of {', '.join(HARDWARE)}, or a .json file of bench, got {args.hardware!r}"
        )
    check_numbers(args, at_least_one="count", share="utilisation", finite="hourly_rate")
    images, config = (None, args.config) if args.images is None else _count(args.images, args.config)
    utilisation = args.utilisation or ASSUMED_UTILISATION
    if measured:
        if not Path(args.hardware).is_file():
            bench = f"nextpixel bench --work train --out {args.hardware}"
            raise InputError(f"--hardware: {args.hardware} does not exist; create it with: {bench}")
        hardware, timed, reached = measured_hardware(read_json(Path(args.hardware)), args.hardware)
        utilisation = args.utilisation or reached
        if config.dtype not in ("auto", timed):
            raise InputError(f"--dtype: expected {timed}, in which {args.hardware} timed training, got {config.dtype}")
    else:
        hardware = HARDWARE[args.hardware]
    config = with_side(config)
    shape = shape_at_most(config, images)
    config = continued(config, shape)
    plan = make_plan(
        shape,
        hardware,
        steps=config.steps,
        batch_images=config.batch_images,
        devices=args.count,
        utilisation=utilisation,
        dtype=config.dtype,
        optimizer=config.chosen_optimizer,
        checkpointed=True if config.checkpoint_activations else None,
        compiled=config.compile != "off",
        micro_batch=config.micro_batch_images,
    )
    device_hours = plan.seconds / 3600 * args.count
    price = None if args.hourly_rate is None else device_hours * args.hourly_rate
    epochs = None if images is None else plan.images / images
    if args.output.json:
        facts = asdict(plan) | {"memory_bytes": plan.layout.memory.total, "epochs": epochs, "price": price}
        print_json(facts | {"hardware": asdict(hardware), "shape": asdict(shape), "device_hours": device_hours})
        return
    layout, need = plan.layout, plan.layout.memory
    gb = {name: value / 1e9 for name, value in asdict(need).items() if value}
    show(f"parameters         {plan.parameters:,}")
    show(
        f"work               {plan.flops_per_image / 1e9:,.1f} GFLOP an image, {plan.images:,} images"
        + (f" ({epochs:,.1f} epochs)" if epochs is not None else "")
        + f": {plan.flops:.2e} FLOP"
    )
    show(
        f"layout             {args.count} x {hardware.name}, {layout.name}, "
        f"{layout.micro_batch_images} images at a time"
        + (", activations recomputed" if layout.checkpoint_activations else "")
    )
    show(
        f"memory a device    {need.total / 1e9:.1f} of {hardware.memory_bytes / 1e9:.0f} GB: "
        + ", ".join(f"{name} {value:.1f}" for name, value in gb.items())
    )
    share = f"{plan.utilisation:.0%} of the {plan.dtype} peak"
    show(f"time               {_duration(plan.seconds)} at {share}; {hardware.source}")
    if price is not None:
        show(f"price              {_rounded(price)} for {_rounded(device_hours)} device hours at {args.hourly_rate:g}")
    show(
        f"drawing            at least {plan.drawing_seconds_at_least:.2g} s for one picture, at most "
        f"{plan.drawing_batch_images_per_second_at_most:,.0f} pictures/s in full batches"
    )
    if args.utilisation is None and not measured:
        say(
            "The utilisation is an assumption; to measure it on the device: nextpixel bench --work train --out "
            "bench.json, then use --hardware bench.json"
        )


def _count(text: str, config: PretrainConfig) -> tuple[int, PretrainConfig]:
    """Parse 50000 or 1.28M, or count the images of a source; the settings with the side of its pixel art."""
    number, scale = (text[:-1], SCALES[text[-1].lower()]) if text[-1:].lower() in SCALES else (text, 1.0)
    try:
        value = float(number) * scale
    except ValueError:
        if not Path(text).exists():
            raise InputError(
                f"--images: expected a number such as 50000 or 1.28M, or a folder of images, got {text!r}"
            ) from None
        from nextpixel.images.sources import open_source, with_canvas
        from nextpixel.training.tokenizers import wanted_colours

        source = open_source(text)
        if config.init is None and wanted_colours(config) is not None:
            source, size = with_canvas(source, config.side, config.levels)
            config = replace(config, side=to_side(size))
            if not len(source):
                fits = f"no picture of {text} fits on {side_text(size)} pixels; plan a larger side"
                raise InputError(fits, argument="side") from None
        return len(source), config
    if not 1 <= value < float("inf"):
        raise InputError(f"--images: expected at least 1, got {text}")
    return round(value), config


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.0f} seconds"


def _rounded(amount: float) -> str:
    return f"{amount:,.0f}" if amount >= 10 else f"{amount:.2g}"
