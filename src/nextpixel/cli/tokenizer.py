"""nextpixel tokenizer"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from nextpixel.cli.arguments import check_run, joined, parse, print_json, resumable, show
from nextpixel.cli.common import check_sources, psnr_text
from nextpixel.cli.hints import command, placing
from nextpixel.config import CodecConfig, OutputOptions, refuse_given, side_text, to_size
from nextpixel.errors import InputError
from nextpixel.progress import say, say_left_out


@dataclass(frozen=True)
class TokenizerArguments:
    """Fit a tokenizer whose tokens are patches of pixels, for pictures that are too large for a token a pixel.

    Prints the PSNR of held-out images decoded from their tokens, and the share of the codes that they use; the folder
    also shows some of them, with their reconstructions below. Training of a learned one can be interrupted and resumed.
    """

    images: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[IMAGES]")] = ()
    """Picture files, folders, arrays, parquet files or hub names; several are concatenated."""
    kind: Literal["patches", "learned", "palette"] = "patches"
    """patches: the nearest of the patches that k-means finds in the images, which uses only --patch, --codes, --side,
    --seed, --validation-fraction, --cache and the options of images. learned: a convolutional codec around finite
    scalar quantisation (Mentzer et al. 2023), trained by the other options too. palette: a colour for each pixel, with
    the options of `nextpixel palette`, which is short for it."""
    learned_decoder: bool = False
    """With --kind patches, also train the decoder of a learned one for them: the tokens stay, their pictures are
    smoother. A run like that of --kind learned."""
    out: Path | None = None
    """The new folder of the tokenizer."""
    resume: Path | None = None
    """Resume the training of this folder; only --data is allowed with it."""
    data: tuple[str, ...] = ()
    """With --resume, the new location of the same images; recorded in the run."""
    split: str | None = None
    """The split to use, if the source has several; default: train."""
    config: CodecConfig = field(default_factory=CodecConfig)
    output: OutputOptions = field(default_factory=OutputOptions)


def run(argv: Sequence[str]) -> None:
    for i, word in enumerate(argv):
        if word == "--kind=palette" or [word, *argv[i + 1 : i + 2]] == ["--kind", "palette"]:
            from nextpixel.cli import palette

            return palette.run([*argv[:i], *argv[i + (2 if word == "--kind" else 1) :]])
    args = parse(TokenizerArguments, "tokenizer", argv)
    check_run(argv, args, args.images, "tokenizer photos/ --out tok")
    check_sources(*args.images, *args.data)
    if args.kind == "learned" and args.learned_decoder:
        raise InputError("expected `kind=patches` with it: a learned tokenizer has one", argument="learned_decoder")
    if args.kind == "learned" or args.learned_decoder or args.resume is not None:
        out, facts = _train(args)
    else:
        training = "width blocks steps batch_images learning_rate warmup_steps evaluate_every_steps clip_norm tracker"
        training += " dtype device checkpoint_every_steps checkpoint_every_minutes log_every_steps"
        refuse_given(args.config, training, "requires `kind=learned` or `learned_decoder`")
        out, facts = _fit(args)
    from nextpixel.tokens import Reconstruction, load_tokenizer

    tokenizer = load_tokenizer(out)
    found = Reconstruction(**{name: facts[name] for name in Reconstruction.__dataclass_fields__})
    if args.output.json:
        print_json({"out": str(out), "sha256": tokenizer.hash, "codes": len(tokenizer), **facts})
    else:
        show(
            f"{out}: {len(tokenizer):,} codes for {tokenizer.patch[0]} x {tokenizer.patch[1]} pixels; "
            f"{psnr_text(found)} and {found.codes_used:.1%} used on {facts['held_out_images']:,} held-out images"
        )
    words = (*(args.images or ["photos/"]), "--tokenizer", out, "--side", side_text(to_size(facts["side"])))
    words += (*placing(args.config), "--out", "run")
    say(f"To train with it: {command('pretrain', *words, split=args.split)}")


def _train(args: TokenizerArguments) -> tuple[Path, dict[str, Any]]:
    """The folder of a tokenizer with a learned decoder, and what its tokenizer.json says of its training."""
    from nextpixel.checkpoints import Run
    from nextpixel.files import read_json
    from nextpixel.tokens.tokenizer import FACTS
    from nextpixel.training.codecs import KIND, start_run, train_run
    from nextpixel.training.run_images import relocate_whole_set

    if args.resume is not None:
        found = relocate_whole_set(Run.open(args.resume, KIND), joined(args.data) or None)
    else:
        assert args.out is not None
        found = start_run(joined(args.images), args.out, args.config, args.split, patches=args.learned_decoder)
    with resumable("tokenizer", found.path):
        train_run(found)
    return found.path, read_json(found.path / FACTS)["fitted"]


def _fit(args: TokenizerArguments) -> tuple[Path, dict[str, Any]]:
    """The same of patches."""
    from nextpixel.data.decoded import decode
    from nextpixel.files import new_output
    from nextpixel.tokens import reconstruction, save_tokenizer
    from nextpixel.tokens.patches import Patches
    from nextpixel.training.codecs import pictures_of, save_reconstructions

    config, out = args.config, args.out
    assert out is not None
    new_output(out)
    images = decode(
        joined(args.images),
        config.size,
        split=args.split,
        cache=config.cache,
        fit=config.fit or "crop",
        levels=config.levels,
    )
    say_left_out(images.unreadable)
    train, held = pictures_of(images, config)
    tokenizer = Patches.fit(train, config.codes, config.patch, config.seed)
    facts = {"source": ", ".join(args.images), "seed": config.seed, "side": config.side, "images": len(train)}
    facts |= {"held_out_images": len(held), **asdict(reconstruction(tokenizer, held))}
    save_tokenizer(tokenizer, out, {"fitted": facts})
    save_reconstructions(tokenizer, held, out / "reconstructions.png")
    return out, facts
