"""The notebooks: what is shown is what their sources gave, and the sources run, on tiny settings."""

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "docs" / "notebooks"
TINY: dict[str, dict[str, Any]] = {
    "complete-and-draw": {"N": 2},
    "odd-images": {"STEPS": 2, "NEW": 12},
    "paper-in-miniature": {"STEPS": 2, "SHAPES": {"tiny": (1, 8, 1)}, "TRAINED": 100},
    "your-own-folder": {"STEPS": 2, "LABELS": 2},
}


def code_of(source: str) -> list[str]:
    """The code cells of a source with a line # %% before each cell."""
    cells = re.split(r"^# %%(.*)\n", source, flags=re.MULTILINE)[1:]
    return [code.strip().replace("# !", "!") for kind, code in zip(cells[::2], cells[1::2]) if "[markdown]" not in kind]


@pytest.mark.parametrize("name", TINY)
def test_the_notebook_was_run_from_its_source(name: str) -> None:
    file = FOLDER / f"{name}.ipynb"
    cells = [cell for cell in json.loads(file.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    written = ["".join(cell["source"]) for cell in cells]
    assert written == code_of(file.with_suffix(".py").read_text(encoding="utf-8")), "run make notebooks"
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert any("image/png" in output.get("data", ()) for output in outputs)
    assert not [output for output in outputs if output["output_type"] == "error" or "not found" in str(output)]
    assert file.stat().st_size < 300_000


def test_every_notebook_is_tested() -> None:
    assert (
        {path.stem for path in FOLDER.glob("*.ipynb")}
        == set(TINY)
        == {path.stem for path in FOLDER.glob("*.py")} - {"execute"}
    )


@pytest.mark.notebooks
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("default")  # of Jupyter's libraries
@pytest.mark.parametrize("name", TINY)
def test_the_source_runs(name: str) -> None:
    spec = importlib.util.spec_from_file_location("execute", FOLDER / "execute.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    notebook = module.execute(FOLDER / f"{name}.py", **TINY[name])
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
