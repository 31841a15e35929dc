"""Makes notebooks with outputs from their sources: python docs/notebooks/execute.py docs/notebooks/NAME.py ..."""

import os
import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient


def execute(source: Path, **settings: Any) -> nbformat.NotebookNode:
    """The notebook after a run in a temporary folder; `settings` replace those of the same name in the source."""
    text = source.read_text(encoding="utf-8")
    for name, value in settings.items():
        text, found = re.subn(rf"^{name} = [^#\n]*", f"{name} = {value!r}  ", text, flags=re.MULTILINE)
        if found != 1:
            raise ValueError(f"{source}: expected one line {name} = ..., got {found}")
    notebook = jupytext.reads(text, "py:percent")
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # finds nextpixel
    with TemporaryDirectory() as folder:
        client = NotebookClient(notebook, record_timing=False, coalesce_streams=True)
        client.execute(cwd=folder)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]  # progress
    return notebook


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        nbformat.write(execute(path), path.with_suffix(".ipynb"))
