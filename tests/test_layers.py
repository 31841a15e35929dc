"""The order of the house: who imports whom, who owns what, and that importing the package does nothing.

A new module needs a line in LAYERS; docs/design.md says what the layers mean.
"""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import nextpixel

SOURCE = Path(nextpixel.__file__).parent

# A unit is a module or a folder directly under nextpixel/. Those without a number lie under all the others.
GROUND = {"attention", "config", "errors", "files", "hardware", "limits", "progress"}
LAYERS = {
    unit: number
    for number, units in enumerate(
        [
            "resnet palette images optim metrics sample_metrics plan distributed devices tracking".split(),
            ["tokens"],
            ["model", "sources", "kernels"],
            ["caches", "data", "checkpoints", "pages"],
            ["packing", "scoring"],
            ["decoding"],
            ["drawing"],
            ["extraction", "labels", "prepared", "sampling", "training", "curves"],
            ["evaluation", "probing", "extractors", "preparation"],
            ["few_labels", "forecast", "ridge"],
            ["baselines", "comparison", "pretraining", "finetuning", "convnet", "distillation", "oddness"],
            ["study", "bench", "figures", "oddness_page", "run_page"],
            ["server"],
            ["cli"],
            ["__main__"],
        ]
    )
    for unit in units
}

# What only these units may import.
OWNERS = {
    "PIL": {"images"},
    "torch.distributed": {"distributed"},
    "transformers": {"bench"},  # to race against
    "torchvision": set(),
}
SPEAKERS = {"cli", "__main__"}  # may print and end the process
FOREIGN_WEIGHT_NAMES = ("c_attn", "c_proj", "lm_head", "transformer.h.", "wtet")  # known to checkpoints alone

FILES = sorted(SOURCE.rglob("*.py"))
every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))


def unit_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node but those under `if TYPE_CHECKING:`, which import nothing when the code runs."""
    for child in ast.iter_child_nodes(tree):
        if is_type_checking(child):
            yield from (node for statement in child.orelse for node in (statement, *nodes(statement)))
        else:
            yield child
            yield from nodes(child)


def imported(tree: ast.AST, path: Path) -> set[str]:
    """Dotted names that the file imports anywhere, with relative imports made absolute."""
    package = ["nextpixel", *path.relative_to(SOURCE).parts[:-1]]
    names = set()
    for node in nodes(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*parts, *([node.module] if node.module else [])])
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def level(name: str) -> int:
    """Height of a unit; a public name taken from the package itself lies just under the commands."""
    return -1 if name in GROUND | {"__version__"} else LAYERS.get(name, LAYERS["cli"] - 1)


def broken_layers(tree: ast.AST, path: Path) -> list[str]:
    """What a file imports of ours that does not lie below it."""
    unit = unit_of(path)
    used = {name.split(".")[1] for name in imported(tree, path) if name.startswith("nextpixel.")}
    return sorted(name for name in used - {unit} - GROUND if level(name) >= level(unit))


def broken_ownership(tree: ast.AST, path: Path) -> list[str]:
    names = imported(tree, path)
    own = {  # a module of ours may bear the name of the library whose files it reads
        name.rpartition(".")[2] for name in names if name.startswith("nextpixel.")
    }
    attributes = {ast.unparse(node) for node in nodes(tree) if isinstance(node, ast.Attribute)}
    used = names | {name for name in attributes if name.partition(".")[0] not in own}
    return sorted(
        name
        for name, owners in OWNERS.items()
        if unit_of(path) not in owners and any(f"{other}.".startswith(f"{name}.") for other in used)
    )


def outbursts(tree: ast.AST) -> list[int]:
    """Lines that print or end the process."""
    loud = {"print", "sys.exit", "exit", "quit", "os._exit"}
    calls = (node for node in nodes(tree) if isinstance(node, ast.Call))
    return [call.lineno for call in calls if ast.unparse(call.func) in loud]


def foreign_names(tree: ast.AST) -> set[str]:
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    strings = (
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose
    )
    return {name for text in strings for name in FOREIGN_WEIGHT_NAMES if name in text}


def test_every_module_has_a_layer():
    units = {unit_of(path) for path in FILES} - {"__init__"}
    assert units - GROUND - LAYERS.keys() == set(), "give each new module a line in LAYERS"


@every_file
def test_imports_point_downwards(path):
    if unit_of(path) != "__init__":
        assert broken_layers(parse(path), path) == []


@every_file
def test_single_owners(path):
    tree = parse(path)
    assert broken_ownership(tree, path) == []
    if unit_of(path) not in SPEAKERS:
        assert outbursts(tree) == [], "only the command line prints and exits"
    if unit_of(path) != "checkpoints":
        assert foreign_names(tree) == set(), "only checkpoints knows foreign weight names"


def test_no_module_hides_a_public_name():
    """Importing nextpixel.x sets the attribute x of the package, over any function of that name."""
    assert {unit_of(path) for path in FILES} & set(nextpixel.__all__) == set()


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
    assert {name.split(".")[0] for name in loaded} & {
        "torch",
        "numpy",
        "PIL",
        "datasets",
        "rich",
        "tyro",
    } == set()


@pytest.mark.parametrize(
    ("unit", "code", "broken"),
    [
        ("data", "from nextpixel.palette import Palette", []),
        ("data", "from nextpixel import config, errors, progress", []),
        ("data", "from nextpixel.checkpoints import load", ["checkpoints"]),
        ("data", "def f():\n    import nextpixel.cli.main", ["cli"]),
        ("data", "from . import training", ["training"]),
        ("data", "from nextpixel import __version__, load", ["load"]),
        ("cli", "from nextpixel import __version__, load", []),
        ("config", "from nextpixel.errors import InputError", []),
        ("config", "from nextpixel.model import ImageGPT", ["model"]),
        ("palette", "if TYPE_CHECKING:\n    from nextpixel.model import ImageGPT", []),
        ("palette", "if TYPE_CHECKING:\n    pass\nelse:\n    import nextpixel.model", ["model"]),
    ],
)
def test_the_walk_sees_wrong_imports(unit, code, broken):
    assert broken_layers(ast.parse(code), SOURCE / f"{unit}.py") == broken


def test_the_walk_sees_relative_imports_in_folders():
    tree = ast.parse("from ..sampling import draw\nfrom .convert import rename")
    assert broken_layers(tree, SOURCE / "checkpoints" / "__init__.py") == ["sampling"]


@pytest.mark.parametrize(
    ("code", "broken"),
    [
        ("from PIL import Image", ["PIL"]),
        ("import torch\ntorch.distributed.init_process_group()", ["torch.distributed"]),
        ("from torch import distributed as dist", ["torch.distributed"]),
        ("import torch.distributions\nimport torch", []),
        ("def f():\n    import transformers.models", ["transformers"]),
    ],
)
def test_the_walk_sees_wrong_owners(code, broken):
    assert broken_ownership(ast.parse(code), SOURCE / "sampling.py") == broken


def test_the_walk_sees_prints_and_foreign_names():
    assert outbursts(ast.parse("import sys\nprint(1)\nsys.exit(2)\nsys.stderr.write('')")) == [2, 3]
    assert foreign_names(ast.parse('"""c_attn in prose"""\nx = "h.0.attn.c_attn.weight"')) == {"c_attn"}
