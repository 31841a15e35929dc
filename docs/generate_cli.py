"""Writes docs/cli.md from the arguments of every command: python docs/generate_cli.py"""

import dataclasses
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints
from unittest import mock

import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructTypeInfo

from nextpixel.cli import VERBS, main
from nextpixel.cli.spelling import NAMED, flag, spell
from nextpixel.config import Size

PAGE = Path(__file__).with_name("cli.md")
HEAD = """# Command line

Results go to stdout, everything else to stderr. Exit codes: 0 success, 1 failure during work, 2 bad input, 130
interrupted. `nextpixel COMMAND --help` prints the options of a command, `nextpixel --version` the version.

<!-- Generated: python docs/generate_cli.py -->

| command | what it does |
|---|---|
"""
TABLE_HEAD = "| name | value | default | meaning |\n|---|---|---|---|\n"
EXAMPLES = {
    "complete": "nextpixel complete photo.jpg --keep 0.5 -n 8 --full drawn --show",
    "sample": "nextpixel sample -n 16 --temperature 0.9 --out samples.png",
    "vary": "nextpixel vary potion.png --strength 0.3 --model runs/sprites",
    "score": "nextpixel score new/ --against normal/ --report odd.html",
    "evaluate": "nextpixel evaluate photos/ --split test --model runs/photos",
    "features": "nextpixel features photos/ --layer 4 --out features.npz",
    "probe": "nextpixel probe labelled/ --test held-out/ --labels-per-class 5,25 --out probe",
    "predict": "nextpixel predict probe new/ --out predictions.csv",
    "finetune": "nextpixel finetune labelled/ --test held-out/ --out runs/clf",
    "prepare": "nextpixel prepare photos/ prepared/ --side 32",
    "pretrain": "nextpixel pretrain photos/ --size xs --side 32 --steps 20000 --out runs/photos",
    "distill": "nextpixel distill photos/ --model runs/photos --layer 4 --out runs/student",
    "study": "nextpixel study runs/* --data labelled/ --out study",
    "serve": "nextpixel serve --model runs/photos --port 8000",
    "plan": "nextpixel plan --recipe imagenet32-s --images 1.28M --hardware h200 --count 8",
    "palette": "nextpixel palette photos/ --colors 256 --out palette.npy",
    "tokenizer": "nextpixel tokenizer photos/ --side 64 --patch 4 --out tok",
    "push": "nextpixel push runs/photos user/photos",
    "info": "nextpixel info runs/photos --html page.html",
    "bench": "nextpixel bench --work complete --batch 1,8 --out bench.json",
    "completion": 'eval "$(nextpixel completion bash)"',
    "convert": "nextpixel convert runs/student --to student.onnx",
}
VALUES = {
    int: "integer",
    float: "number",
    str: "text",
    Path: "path",
    bool: "flag",
    int | Size: "integer, or integer x integer",
}


class Argument(NamedTuple):
    name: str  # --batch-images, or IMAGES
    value: str
    default: str
    meaning: str


def page() -> str:
    """The whole of cli.md."""
    overview = (f"| [`{verb}`](#nextpixel-{verb}) | {what} |\n" for verb, what in VERBS.items())
    return HEAD + "".join(overview) + "".join(_section(verb) for verb in VERBS)


def _section(verb: str) -> str:
    with mock.patch("tyro.cli", side_effect=SystemExit(0)) as parser:
        main([verb])
    kind = parser.call_args.args[0]
    groups = {group: _arguments(group) for group in _groups(kind)}
    positionals = [argument.name for argument in groups[kind] if not argument.name.startswith("-")]
    usage = " ".join(["nextpixel", verb, *positionals, "[OPTIONS]"])
    if verb in EXAMPLES:
        usage += f"\n\n{EXAMPLES[verb]}"
    text = f"\n## nextpixel {verb}\n\n```text\n{usage}\n```\n"
    for group, arguments in groups.items():
        rows = (f"| `{a.name}` | {a.value} | {a.default} | {a.meaning} |\n" for a in arguments)
        text += f"\n{_prose(inspect.getdoc(group) or '')}\n\n{TABLE_HEAD}{''.join(rows)}"
    return text


def _groups(kind: type) -> Iterator[type]:
    """A dataclass, then the dataclasses in it."""
    yield kind
    for hint in get_type_hints(kind).values():
        if dataclasses.is_dataclass(hint):
            yield from _groups(hint)  # type: ignore[arg-type]


def _arguments(kind: Any) -> list[Argument]:
    """The arguments that a dataclass itself has, positionals first."""
    hints = get_type_hints(kind, include_extras=True)
    spec = ConstructorRegistry.get_struct_spec(StructTypeInfo.make(kind, tyro.MISSING, in_union_context=False))
    assert isinstance(spec, StructConstructorSpec)
    help_texts = {field.name: field.helptext for field in spec.fields}
    found = []
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            continue
        name = flag(f"no_{field.name}" if field.default is True else field.name)
        if tyro.conf.Positional in get_args(hint):
            name = next(extra.metavar for extra in get_args(hint) if hasattr(extra, "metavar"))
        help_text = help_texts[field.name]
        found.append(
            Argument(
                name=name,
                value=_value(hint),
                default=_default(field),
                meaning=_prose((help_text() if callable(help_text) else help_text) or "").replace("|", r"\|"),
            )
        )
    return sorted(found, key=lambda argument: argument.name.startswith("-"))


def _value(hint: Any) -> str:
    """What may be given: a type in words, or the choices."""
    if found := VALUES.get(hint) or (hint == int | Size | None and VALUES[int | Size]):
        return found
    first, *others = [part for part in get_args(hint) if part is not NoneType]
    if get_origin(hint) is Literal:
        return ", ".join(f"`{choice}`" for choice in (first, *others))
    if get_origin(hint) is Annotated:
        return _value(first) + (", repeatable" if tyro.conf.UseAppendAction in others else "")
    return _value(first) + (", one or more" if get_origin(hint) is tuple else "")


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is dataclasses.MISSING:
        return "required"
    return "" if field.default in (None, ()) or isinstance(field.default, bool) else f"`{field.default}`"


def _prose(text: str) -> str:
    """Paragraphs without line breaks, arguments as options."""
    paragraphs = (" ".join(paragraph.split()) for paragraph in text.split("\n\n"))
    return NAMED.sub(lambda found: f"`{spell(found[0])}`", "\n\n".join(paragraphs))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
