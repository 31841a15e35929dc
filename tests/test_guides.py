"""The guides: their sh blocks, typed in order in an empty folder."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from test_docs import ROOT, fenced

DATA = Path(os.environ.get("NEXTPIXEL_DATA", ROOT / "data"))
GUIDES = {"aerial": "rsscn7", "x-rays": "pneumoniamnist", "pixel-art": "sprites", "repaint": None}  # data it needs
EVERY = sorted(path.stem for path in (ROOT / "docs" / "guide").glob("*.md"))
FEW_LABELS = {"pretrain", "probe", "finetune", "distill", "convert", "predict"}
VERBS = {"aerial": FEW_LABELS, "x-rays": FEW_LABELS, "pixel-art": {"palette", "pretrain", "sample", "complete", "vary"}}
VERBS["repaint"] = {"complete"}
SECONDS = 3 * 3600  # 20 to 25 minutes of one idle core; other work may share it


def blocks(guide: str) -> list[tuple[int, str]]:
    """(first line, commands) of the sh blocks of a guide."""
    text = (ROOT / "docs" / "guide" / f"{guide}.md").read_text(encoding="utf-8")
    return [(line, code) for line, language, code, _ in fenced(text) if language == "sh"]


def commands(code: str) -> list[list[str]]:
    """The words of each nextpixel command of a block."""
    lines = code.replace("\\\n", " ").splitlines()
    return [words[1:] for line in lines if (words := shlex.split(line, comments=True)) and words[0] == "nextpixel"]


@pytest.mark.parametrize("guide", EVERY)
def test_a_guide_types_flags_that_exist(guide: str) -> None:
    reference = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    typed = [words for _, code in blocks(guide) for words in commands(code)]
    assert typed and VERBS.get(guide, set()) <= {words[0] for words in typed}
    for verb, *words in typed:
        section = reference.split(f"\n## nextpixel {verb}\n")[1].split("\n## ")[0]
        flags = [word for word in words if word.startswith("-")]
        assert [flag for flag in flags if not re.search(rf"(?<![\w-]){flag}(?![\w-])", section)] == [], verb


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.timeout(SECONDS)
@pytest.mark.parametrize("guide", GUIDES)
def test_a_guide_runs_from_its_first_block_to_its_last(guide: str, tmp_path: Path) -> None:
    needed = GUIDES[guide]
    if needed and not (DATA / needed).is_dir():
        pytest.skip(f"{DATA / needed} is absent: see benchmarks/, or set NEXTPIXEL_DATA")
    for name, words in (("nextpixel", "-m nextpixel"), ("python", "")):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {words} "$@"\n')
        program.chmod(0o755)
    desk = tmp_path / "desk"
    (desk / "data").mkdir(parents=True)
    if needed:
        (desk / "data" / needed).symlink_to((DATA / needed).resolve())
    environment = os.environ | {"PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    for line, code in blocks(guide):
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", code], cwd=desk, env=environment, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
        assert done.returncode == 0, f"docs/guide/{guide}.md, line {line}:\n{code}\n{done.stdout[-3000:]}"
        print(done.stdout)
