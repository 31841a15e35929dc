"""Errors name the arguments of the library; the command line alone turns them into options."""

import ast
import dataclasses
import importlib
import pickle
import re
from pathlib import Path
from types import ModuleType
from typing import get_type_hints

import pytest

import nextpixel
from nextpixel import InputError, WorkError
from nextpixel.cli import VERBS, main, spelling
from nextpixel.config import SamplingConfig

SOURCE = Path(nextpixel.__file__).parent
LIBRARY = [path for path in sorted(SOURCE.rglob("*.py")) if "cli" not in path.relative_to(SOURCE).parts]
OPTION = re.compile(r"(?<![\w-])--[a-z]")  # but neither tables of Markdown nor var(--colour) of a page
PAGES = {"oddness_page.py"}  # style sheets have names that begin with --


def verb_module(verb: str) -> ModuleType:
    return importlib.import_module(f"nextpixel.cli.{verb}")


def arguments_of(kind: type) -> set[str]:
    names = set()
    for name, hint in get_type_hints(kind).items():
        names |= arguments_of(hint) if dataclasses.is_dataclass(hint) else {name}
    return names


def known_arguments() -> set[str]:
    """Of the command line, and the fields of the Images API that it has not."""
    kinds = [kind for verb in VERBS for kind in vars(verb_module(verb)).values()]
    own = [kind for kind in kinds if dataclasses.is_dataclass(kind) and kind.__module__.startswith("nextpixel.cli")]
    return set().union(*map(arguments_of, own), {"prompt", "size"})


def texts(node: ast.AST) -> list[str]:
    return [part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and isinstance(part.value, str)]


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: str(path.relative_to(SOURCE)))
def test_the_library_knows_no_options(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    wrong = [line for line in lines if OPTION.search(line) and not (path.name in PAGES and "var(--" in line)]
    assert wrong == [], "name the argument: InputError(..., argument=...), others in backticks"


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: str(path.relative_to(SOURCE)))
def test_what_errors_name_are_arguments_of_some_command(path):
    """Else the command line would print an option that there is not."""
    known = known_arguments()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("InputError", "WorkError"):
            named = {name for text in texts(node) for name, _ in spelling.NAMED.findall(text)}
            for keyword in node.keywords:
                if keyword.arg == "argument" and isinstance(keyword.value, ast.Constant):
                    named |= set(str(keyword.value.value).split(", "))
            assert named <= known, ast.unparse(node)
            first = node.args[0] if node.args else None
            opening = texts(first)[:1] if isinstance(first, ast.Constant | ast.JoinedStr) else []
            plain = re.match(r"([a-z_]+): ", opening[0]) if opening else None
            if isinstance(first, ast.JoinedStr) and isinstance(first.values[0], ast.FormattedValue):
                plain = None  # what comes first is a path
            assert plain is None or plain[1] not in known, f"argument={plain[1]!r} is missing: {ast.unparse(node)}"


@pytest.mark.parametrize("kind", [InputError, WorkError])
def test_an_error_names_its_argument(kind):
    error = kind("expected a divisor of `batch_images=128`, got 3", argument="micro_batch_images")
    assert str(error) == "micro_batch_images: expected a divisor of `batch_images=128`, got 3"
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.argument) == (str(error), "micro_batch_images")
    assert spelling.spell_error(error) == "--micro-batch-images: expected a divisor of --batch-images 128, got 3"
    assert str(kind("no space left")) == spelling.spell_error(kind("no space left")) == "no space left"


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        ("use `shard`, or a smaller `micro_batch_images`", "use --shard, or a smaller --micro-batch-images"),
        ("go on with `resume=my runs/a`", "go on with --resume my runs/a"),
        ("draw `n` with another `seed`", "draw -n with another --seed"),
        ("nextpixel prepare `images` NEW `side=32`", "nextpixel prepare IMAGES NEW --side 32"),
        ("`transformers.Model` and `pip install x` stay", "`transformers.Model` and `pip install x` stay"),
        ("data: expected a folder", "data: expected a folder"),  # a path, for all we know
    ],
)
def test_arguments_become_options(text, spelled):
    assert spelling.spell(text, {"images"}) == spelled


@pytest.mark.parametrize(
    ("verb", "name", "spelled"),
    [
        ("features", "images", "IMAGES"),
        ("evaluate", "train", "--train"),
        ("probe", "train", "TRAIN"),
        ("info", "model", "MODEL"),
        ("sample", "model", "--model"),
    ],
)
def test_each_verb_spells_its_own(verb, name, spelled):
    assert spelling.spell_error(InputError("x", argument=name), verb_module(verb)) == f"{spelled}: x"


def test_one_error_in_both_worlds(capsys):
    with pytest.raises(InputError, match=r"^top_p: expected a number above 0 and at most 1, got 2"):
        SamplingConfig(top_p=2)
    assert main(["sample", "--top-p", "2"]) == 2
    assert capsys.readouterr().err == "nextpixel: --top-p: expected a number above 0 and at most 1, got 2.0\n"
    assert main(["info", "nowhere"]) == 2
    assert capsys.readouterr().err.startswith("nextpixel: MODEL: expected a checkpoint folder")
