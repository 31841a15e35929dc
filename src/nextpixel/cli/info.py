"""nextpixel info"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from nextpixel.cli.arguments import parse, print_json, show
from nextpixel.cli.common import check_file
from nextpixel.cli.hints import command, first_use
from nextpixel.config import OutputOptions, stated
from nextpixel.errors import InputError
from nextpixel.files import check_model_name
from nextpixel.progress import say

if TYPE_CHECKING:
    from nextpixel.network.model import ImageGPT
    from nextpixel.network.resnet import ResNet


COLOURS_SHOWN = 64


@dataclass(frozen=True)
class Info:
    """Describe a model, or a run and its progress."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="[MODEL]")] = "embedded"
    """A checkpoint folder, a run folder, a hub name or a bundled model (embedded, faces, photos); default: embedded."""
    words: bool = False
    """List the words that captions may have, the most frequent first, with the share of training captions that have
    them."""
    html: Path | None = None
    """Write a self-contained .html page about a run: curves, samples, throughput, checkpoints, settings."""
    output: OutputOptions = field(default_factory=OutputOptions)


def run(argv: Sequence[str]) -> None:
    args = parse(Info, "info", argv)
    path = Path(args.model)
    if args.html is not None:
        check_file(args.html, ".html", argument="html")
        if not (path / "run.json").is_file():
            raise InputError(f"--html: expected a run folder, with a run.json, got {args.model!r}")
    check_model_name(args.model)
    from nextpixel.checkpoints import Run, find_model, load_backbone, planned_steps
    from nextpixel.files import write_text
    from nextpixel.network.model import ImageGPT
    from nextpixel.representation.extraction import tokenizer_hash

    facts: dict[str, Any] = {"model": args.model}
    if (path / "run.json").is_file():
        run = Run.open(path)
        with run.checked_facts() as written:
            planned = planned_steps(written)
        done = run.steps()
        facts["run"] = {
            "kind": run.kind,
            "steps": done[-1] if done else 0,
            "planned_steps": planned,
            "best": run.best(),
            "checkpoints": done,
        }
        losses = [entry for entry in run.read_log() if "loss" in entry]
        if losses:
            facts["run"]["last_log"] = losses[-1]
        if score := run.test_score():
            facts["run"]["test"] = {k: v for k, v in score.items() if k != "confusion"}
        if args.html is not None:
            from nextpixel.reports.run_page import page

            write_text(args.html, page(run))
            facts["html"] = str(args.html)
        if not done:
            print_json(facts) if args.output.json else _print(facts)
            say(f"No checkpoint yet; resume with: {command(run.kind, '--resume', path)}")
            return
    model = load_backbone(args.model)
    facts |= {
        "folder": str(find_model(args.model)),
        "shape": stated(asdict(model.config)),
        "parameters": model.config.parameters,
        "palette_sha256": tokenizer_hash(model),
        **({"palette": _palette(model, whole=args.output.json)} if isinstance(model, ImageGPT) else {}),
        "fit": model.fit,
        "made": model.facts,
    }
    if args.words:
        facts["words"] = _words(model)
    print_json(facts) if args.output.json else _print(facts)
    if not isinstance(model, ImageGPT):
        say(f"To probe it: {command('probe', 'labelled/', model=args.model)}")
        return
    if path.is_dir() and args.html is None and "run" in facts:
        say(f"To write a page of its curves and samples: {command('info', path, '--html', 'run.html')}")
    say(first_use(model, None if args.model == "embedded" else args.model))


def _palette(model: ImageGPT, *, whole: bool) -> dict[str, Any]:
    """What its tokens are; of exact colours, these as rrggbbaa, if not `whole` the first ones."""
    from nextpixel.tokens import covers_pixels, exact_colours

    facts: dict[str, Any] = {"kind": model.tokenizer.kind, "tokens": len(model.tokenizer)}
    if covers_pixels(model.tokenizer):
        facts["pixels_of_a_token"] = " x ".join(map(str, model.tokenizer.patch))
    colours = exact_colours(model.tokenizer)
    if colours is None:
        return facts
    named = [bytes(colour).hex() for colour in colours]
    shown = " ".join(named[:COLOURS_SHOWN]) + (" ..." if len(named) > COLOURS_SHOWN else "")
    return facts | {"with_transparency": int((colours[:, 3] < 255).sum()), "rgba": named if whole else shown}


def _words(model: ImageGPT | ResNet) -> dict[str, float | None]:
    """Its words, and their shares where they are known."""
    from nextpixel.network.model import ImageGPT

    if not isinstance(model, ImageGPT) or model.words is None:
        raise InputError("expected a model that was trained with captions, got one without words", argument="words")
    if model.words.shares is None:
        return dict.fromkeys(model.words.table)
    return {word: round(share, 4) for word, share in zip(model.words.table, model.words.shares)}


def _print(values: dict[str, Any], indent: str = "") -> None:
    for name, value in values.items():
        if isinstance(value, dict):
            show(f"{indent}{name}:")
            _print(value, indent + "  ")
        else:
            show(f"{indent}{name}: {value:,}" if type(value) is int else f"{indent}{name}: {value}")
