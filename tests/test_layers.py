"""What the contracts in pyproject.toml do not say: who prints, who owns a name, and that importing is free."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import nextpixel

SOURCE = Path(nextpixel.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
OWNERS = {
    "torch.distributed": ["training/distributed.py", "training/parallel.py"],
    "transformers": ["bench.py"],  # races against it
}
FOREIGN_WEIGHT_NAMES = ("c_attn", "c_proj", "lm_head", "transformer.h.", "wtet")  # known to checkpoints alone


def test_each_room_uses_only_the_rooms_below_it(monkeypatch):
    from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

    monkeypatch.chdir(SOURCE.parents[1])
    assert lint_imports(cache_dir=None, no_cache=True) == EXIT_STATUS_SUCCESS


def test_each_room_says_what_lives_in_it():
    for folder in {path.parent for path in FILES}:
        assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))), folder


def outbursts(tree: ast.AST) -> list[int]:
    """Lines that print or end the process."""
    loud = {"print", "sys.exit", "exit", "quit", "os._exit"}
    return [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) in loud]


def used(tree: ast.AST) -> Iterator[str]:
    """Dotted names that a file imports, or looks up in torch."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute) and ast.unparse(node).startswith("torch."):
            yield ast.unparse(node)


def foreign_names(tree: ast.AST) -> set[str]:
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    strings = (
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose
    )
    return {name for text in strings for name in FOREIGN_WEIGHT_NAMES if name in text}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_single_owners(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    place = path.relative_to(SOURCE)
    names = set(used(tree))
    for library, owners in OWNERS.items():
        if str(place) not in owners:
            assert not [name for name in names if f"{name}.".startswith(f"{library}.")]
    if place.parts[0] not in ("cli", "__main__.py"):
        assert outbursts(tree) == [], "only the command line prints and exits"
    if place.parts[0] != "checkpoints":
        assert foreign_names(tree) == set(), "only checkpoints knows foreign weight names"


def test_the_owners_are_where_they_are_said_to_be():
    for library, owners in OWNERS.items():
        for owner in owners:
            assert any(f"{name}.".startswith(f"{library}.") for name in used(ast.parse((SOURCE / owner).read_text())))
    assert outbursts(ast.parse("import sys\nprint(1)\nsys.exit(2)\nsys.stderr.write('')")) == [2, 3]
    assert foreign_names(ast.parse('"""c_attn in prose"""\nx = "h.0.attn.c_attn.weight"')) == {"c_attn"}


def test_no_room_hides_a_public_name():
    """Importing nextpixel.x sets the attribute x of the package, over any function of that name."""
    assert {path.relative_to(SOURCE).parts[0].removesuffix(".py") for path in FILES} & set(nextpixel.__all__) == set()


def test_public_names_resolve():
    for name in nextpixel.__all__:
        assert getattr(nextpixel, name) is not None
    assert set(nextpixel.__all__) <= set(dir(nextpixel))


def test_importing_the_package_loads_nothing():
    code = "import json, sys; before = set(sys.modules); import nextpixel; "
    code += "print(json.dumps(sorted(set(sys.modules) - before)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = json.loads(done.stdout)
    assert [name for name in loaded if name.startswith("nextpixel.")] == []
    heavy = {"torch", "numpy", "PIL", "datasets", "rich", "tyro"}
    assert {name.split(".")[0] for name in loaded} & heavy == set()


def test_features_and_drawing_do_not_load_the_compiler_of_torch():
    """Which takes seconds and 50 MB."""
    code = """
import sys, numpy as np, nextpixel
model = nextpixel.ImageGPT(nextpixel.ImageGPTConfig(layers=2, width=16, heads=1, side=4, colors=8))
model.palette = nextpixel.Palette(np.linspace(-1, 1, 24).reshape(8, 3))
picture = np.zeros((4, 4, 3), np.uint8)
nextpixel.features(model, [picture]), nextpixel.nll(model, [picture])
nextpixel.complete(model, picture), nextpixel.sample(model, 1)
print("torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
