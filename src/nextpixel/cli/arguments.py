"""Parse arguments into dataclasses with tyro, and print results."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import io
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo, StructTypeInfo

from nextpixel.cli.hints import command
from nextpixel.cli.spelling import flag, spell
from nextpixel.config import PretrainConfig, Size, read_recipe, side_text, to_side, to_size
from nextpixel.errors import InputError
from nextpixel.files import check_run_folder, new_output

T = TypeVar("T")
REQUIRED = "(required)"
Images = Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGES", help_behavior_hint=REQUIRED)]
NUMBER = re.compile(r"(p )?-?[\d,.]+(e[+-]?\d+)?( ?%)?|nan|")
NUMBERS = {int: "a whole number", float: "a number"}


class _Refused(Exception):
    """Carries an InputError of a dataclass through tyro, which catches ValueErrors."""

    def __init__(self, error: InputError) -> None:
        self.error = error


def parse(kind: type[T], verb: str, argv: Sequence[str], default: T | None = None) -> T:
    """Parse argv into a dataclass. --help prints and exits; invalid arguments raise InputError."""
    stderr = io.StringIO()
    chosen: dict[str, Any] = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(stderr):
            args, unknown = tyro.cli(
                kind,
                prog=f"nextpixel {verb}",
                args=list(argv),
                config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes),
                registry=_rules(),
                return_unknown_args=True,
                **chosen,
            )
    except _Refused as refused:
        raise refused.error from None
    except SystemExit as stop:
        if stop.code:
            raise InputError(f"{_message(stderr.getvalue())}; see nextpixel {verb} --help") from None
        raise
    if unknown:
        raise InputError(_unknown(unknown, list(_flags(kind)), verb))
    for name, hint in get_type_hints(kind, include_extras=True).items():
        for extra in get_args(hint):
            if getattr(extra, "help_behavior_hint", None) == REQUIRED and not getattr(args, name):
                raise InputError(f"expected {extra.metavar}, got nothing; see nextpixel {verb} --help")
    return args


def joined(images: Sequence[str]) -> str | list[str]:
    """One source of images as it is, several as a list, which open_source concatenates."""
    return images[0] if len(images) == 1 else list(images)


def recipe_defaults(argv: Sequence[str]) -> PretrainConfig | None:
    """The settings of the recipe named in argv, used as defaults of the other options."""
    named = None  # the last one wins, as for every option
    for i, argument in enumerate(argv):
        name, equals, value = argument.partition("=")
        if name == "--recipe" and (equals or i + 1 < len(argv)):
            named = value if equals else argv[i + 1]
    return None if named is None else read_recipe(named)


def _rules() -> ConstructorRegistry:
    """Changes to tyro: no "None" in help texts, our messages for invalid values, our errors passed through."""
    rules = ConstructorRegistry()
    within: set[Any] = set()

    @rules.struct_rule
    def settings(info: StructTypeInfo) -> Any:
        if not dataclasses.is_dataclass(info.type) or info.type in within:
            return None
        within.add(info.type)
        spec: Any = ConstructorRegistry.get_struct_spec(info)  # tyro's own: this rule returns None while `within`
        within.discard(info.type)

        @functools.wraps(cast(Any, info.type), updated=())  # keeps the docstring, which heads the help text
        def make(**values: Any) -> Any:
            try:
                return spec.instantiate(**values)
            except InputError as error:
                raise _Refused(error) from None

        plain = tyro.conf.arg(help_behavior_hint="")  # hides "(default: None)" and "(default: False)"
        fields = [
            dataclasses.replace(
                f,
                type=Annotated[f.type, plain] if f.default is None or f.default is False else f.type,
                helptext=functools.partial(_help, f.helptext),
            )
            for f in spec.fields
        ]
        return dataclasses.replace(spec, instantiate=make, fields=tuple(fields))

    @rules.primitive_rule
    def side(info: PrimitiveTypeInfo) -> Any:
        """Parse a side, such as 32, or rows and columns, such as 24x16."""
        if info.type not in (int | Size, int | Size | None):
            return None

        def read(words: list[str]) -> int | Size:
            try:
                return to_side(to_size(words[0]))
            except InputError as error:
                raise ValueError(error.message) from None

        spec = _primitive("INT|INTxINT", read)
        return dataclasses.replace(
            spec, str_from_instance=lambda value: [] if value is None else [side_text(to_size(value))]
        )

    @rules.primitive_rule
    def optional(info: PrimitiveTypeInfo) -> Any:
        """Parse X | None as X; None if the option is absent."""
        kinds = [kind for kind in get_args(info.type) if kind is not type(None)]
        if len(kinds) != 1 or type(None) not in get_args(info.type):
            return None
        inner: Any = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(kinds[0], info.markers))
        return dataclasses.replace(
            inner,
            is_instance=lambda value: value is None or inner.is_instance(value),
            str_from_instance=lambda value: [] if value is None else inner.str_from_instance(value),
        )

    @rules.primitive_rule
    def number(info: PrimitiveTypeInfo) -> Any:
        if info.type not in NUMBERS:
            return None

        def read(words: list[str]) -> int | float:
            try:
                return info.type(words[0])
            except ValueError:
                raise ValueError(f"expected {NUMBERS[info.type]}, got {words[0]!r}") from None

        return _primitive(info.type.__name__.upper(), read)

    @rules.primitive_rule
    def choice(info: PrimitiveTypeInfo) -> Any:
        if get_origin(info.type) is not Literal:
            return None
        choices = get_args(info.type)

        def read(words: list[str]) -> str:
            if words[0] not in choices:
                raise ValueError(f"expected one of {', '.join(choices)}, got {words[0]!r}")
            return words[0]

        return _primitive("{" + ",".join(choices) + "}", read)

    return rules


def _help(text: str | Callable[[], str | None] | None) -> str | None:
    found = text() if callable(text) else text
    return None if found is None else spell(found)


def _primitive(metavar: str, read: Any) -> PrimitiveConstructorSpec[Any]:
    return PrimitiveConstructorSpec(1, metavar, read, lambda value: True, lambda value: [str(value)])


def _message(box: str) -> str:
    """An error that tyro prints in a box, as one line."""
    text = " ".join(re.sub("[╭╮╰╯│─]|-{4,}", " ", box).split())
    if missing := re.search(r"Missing from [\w ]+: (\S+)", text):
        return f"expected {missing[1]}, got nothing"
    if empty := re.search("Missing value for argument '(.+?)'", text):
        return f"{empty[1]}: expected a value after it, got none"
    refused = re.search(r"Error parsing (.+?)(?: Argument helptext:| For full helptext|$)", text)
    return refused[1] if refused else text


def _unknown(words: Sequence[str], flags: Sequence[str], verb: str) -> str:
    options = [word.partition("=")[0] for word in words if word.startswith("-")]
    if not options:
        return f"expected nothing after the other arguments, got {words[0]!r}; see nextpixel {verb} --help"
    names = {name.lstrip("-").removeprefix("no-"): name for name in flags}
    near = difflib.get_close_matches(options[0].lstrip("-").removeprefix("no-"), names, n=1)
    hint = f"did you mean {names[near[0]]}?" if near else f"see nextpixel {verb} --help"
    return f"unknown option {options[0]}; {hint}"


def _flags(kind: Any) -> Iterator[str]:
    """The options of a dataclass and of its nested dataclasses."""
    hints = get_type_hints(kind, include_extras=True)
    for name, hint in hints.items():
        if dataclasses.is_dataclass(hint):
            yield from _flags(hint)
        elif tyro.conf.Positional not in get_args(hint):
            yield flag(f"no_{name}" if getattr(kind, name, None) is True else name)


def check_alone(argv: Sequence[str], positional: Any, option: str, *allowed: str, hint: str = "") -> None:
    """Raise InputError if `option` is combined with a positional argument or an option that is not allowed."""
    known = (option, "--json", "--verbose", "--quiet", *allowed)
    others = [a for a in argv if a.startswith("-") and a.partition("=")[0] not in known]
    given = positional if isinstance(positional, str) else " ".join(positional or ())
    if others or given:
        only = f", only with {', '.join(allowed)}" if allowed else ""
        raise InputError(f"{option}: cannot be combined with {' '.join(others) or given}{only}{hint}")


def check_run(
    argv: Sequence[str], args: Any, images: Any, example: str, *allowed: str, init: str | None = None
) -> None:
    """Raise InputError unless there are images and --out for a new run, or --resume without other settings.

    `init` is the option that starts a new run from a model.
    """
    if args.resume is not None:
        new = f", and a new one can start from it with {init}" if init else ""
        check_alone(argv, images, "--resume", "--data", *allowed, hint=f"; a run keeps its settings{new}")
        check_run_folder(args.resume, "resume")
    elif args.data:
        raise InputError(f"requires `resume`{' or `branch`' * hasattr(args, 'branch')}", argument="data")
    elif not images or args.out is None:
        raise InputError(f"expected images and --out, as in: nextpixel {example}; or --resume with a run folder")
    elif not (args.out / "run.json").is_file():  # a run is refused later, with the command that continues it
        try:
            new_output(args.out)
        except InputError:
            if not (args.out / "run.json").is_file():  # else another process of torchrun has begun it since
                raise


@contextlib.contextmanager
def resumable(verb: str, run: Path) -> Iterator[None]:
    """Add the command that resumes the run to a KeyboardInterrupt."""
    try:
        yield
    except KeyboardInterrupt as stop:
        again = command(verb, "--resume", run)
        raise KeyboardInterrupt(f"{str(stop) or 'stopped'}; resume with: {again}") from None


def whole_numbers(argument: str, text: str, least: int) -> list[int]:
    """Parse "4,25,400" into numbers of at least `least`. Raises InputError."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < least:
        raise InputError(f"expected comma-separated whole numbers from {least}, got {text!r}", argument=argument)
    return numbers


def show(*lines: object) -> None:
    """Print lines on stdout, with control characters escaped."""
    from nextpixel.progress import printable

    for line in lines:
        sys.stdout.write(printable(str(line)) + "\n")


def show_table(rows: Sequence[Sequence[str]], heads: Sequence[str] = ()) -> None:
    """Print rows of texts in columns, those of numbers alone to the right."""
    columns = list(zip(*rows, strict=True))
    table = [heads, *rows] if heads else list(rows)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    right = [all(NUMBER.fullmatch(cell) for cell in column) for column in columns]
    for row in table:
        cells = (f"{cell:{'>' if end else '<'}{width}}" for cell, width, end in zip(row, widths, right, strict=True))
        show("  ".join(cells).rstrip())


def print_json(value: dict[str, Any], out: Path | None = None) -> None:
    """Print a JSON object on stdout, or write it to the file `out`, with null for NaN."""
    from nextpixel.files import write_text
    from nextpixel.stats import finite

    text = json.dumps(finite(value), indent=2, allow_nan=False) + "\n"  # ASCII, as file names need not be valid text
    sys.stdout.write(text) if out is None else write_text(out, text)
