"""nextpixel push"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from nextpixel.cli.arguments import parse, print_json, show
from nextpixel.config import OutputOptions
from nextpixel.errors import InputError, WorkError
from nextpixel.progress import say


@dataclass(frozen=True)
class Push:
    """Upload a model and its card to the Hugging Face hub (log in first with: hf auth login)."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A checkpoint folder or a run folder."""
    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="USER/NAME")]
    """Name of the repository, as user/name."""
    private: bool = False
    """Create a private repository."""
    output: OutputOptions = field(default_factory=OutputOptions)


def run(argv: Sequence[str]) -> None:
    args = parse(Push, "push", argv)
    if not re.fullmatch(r"[\w.-]{1,96}/[\w.-]{1,96}", args.name, re.ASCII):
        raise InputError(f"USER/NAME: expected a hub name such as ann/photos-igpt, got {args.name!r}")
    from nextpixel.checkpoints import load, write_model
    from nextpixel.checkpoints.card import model_card

    model = load(args.model)
    if model.training_pictures is not None:
        model.training_pictures = None
        say("The training pictures that lie beside the weights, for counting copies, are not uploaded")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_model(model, folder)
        (folder / "README.md").write_text(model_card(model, args.name), encoding="utf-8")
        address = _upload(folder, args.name, args.private)
    print_json({"url": address}) if args.output.json else show(address)


def _upload(folder: Path, name: str, private: bool) -> str:
    import huggingface_hub

    hub = huggingface_hub.HfApi()
    try:
        hub.create_repo(name, private=private, exist_ok=True)
        return str(hub.upload_folder(folder_path=folder, repo_id=name, commit_message="Upload with nextpixel"))
    except Exception as error:  # hub clients raise many kinds of errors
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WorkError(f"{name}: could not be uploaded: {reason}. Log in with: hf auth login") from error
