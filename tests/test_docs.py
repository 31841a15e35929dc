"""The documents say what is so: the command-line reference is current, Python blocks run, links lead somewhere."""

import dataclasses
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import nextpixel
from nextpixel.cli import VERBS, main

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = sorted([*ROOT.glob("*.md"), *DOCS, *(ROOT / "src").rglob("*.md")])
ASSETS = Path(nextpixel.__file__).parent / "assets"
NOT_RUN = "<!-- not run -->"


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def fenced(text: str) -> Iterator[tuple[int, str, str, str]]:
    """(line of its first code, language, code, the line before the fence) of every fenced block."""
    lines = text.splitlines()
    opened: tuple[int, str, str] | None = None  # line of the fence, the fence itself, language
    for number, line in enumerate(lines):
        fence = re.match(r" *(```+|~~~+) *(\w*)", line)
        if opened is None and fence:
            opened = number, fence[1], fence[2]
        elif opened is not None and line.strip() == opened[1]:
            start, _, language = opened
            before = lines[start - 1].strip() if start else ""
            yield start + 1, language, "\n".join(lines[start + 1 : number]), before
            opened = None


def python_blocks(text: str) -> list[tuple[int, str]]:
    """(first line, code) of the blocks that are to run."""
    return [(line, code) for line, language, code, before in fenced(text) if language == "python" and before != NOT_RUN]


def outside_code(text: str) -> str:
    """A page without its fenced blocks and code spans."""
    for _, _, code, _ in fenced(text):
        text = text.replace(code, "")
    return re.sub(r"`[^`\n]*`", "", text)


def headings(text: str) -> set[str]:
    """The anchors of a page, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def links(text: str) -> list[str]:
    """Targets within the repository, of links and pictures outside code."""
    text = outside_code(text)
    targets = re.findall(r"\]\(\s*<?([^)\s>]+)", text) + re.findall(r"""(?:src|href)=["']([^"']+)""", text)
    return [target for target in targets if not re.match(r"[a-z]+:|#", target)]


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_cli", ROOT / "docs" / "generate_cli.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_command_line_reference_is_current() -> None:
    written = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert written == generator().page(), "docs/cli.md is out of date; run: python docs/generate_cli.py"


@pytest.mark.parametrize("verb", VERBS)
def test_the_reference_lists_what_the_parser_takes(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    parsed = re.findall(
        r"^\S? {1,2}(--[a-z][a-z0-9-]+|-n|\[?[A-Z/]+(?: OUT)?\]?)(?= |$)", capsys.readouterr().out, re.MULTILINE
    )
    section = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8").split(f"\n## nextpixel {verb}\n")[1]
    listed = re.findall(r"^\| `(.+?)` \|", section.split("\n## ")[0], re.MULTILINE)
    assert len(parsed) > 1 and sorted(listed) == sorted(parsed)
    example = generator().EXAMPLES[verb]
    assert f"nextpixel {verb} " in example and {*re.findall(r"(?<= )--?[a-z]\S*", example)} <= {*listed}


@pytest.mark.parametrize("page", [ROOT / "README.md", *DOCS], ids=named)
def test_python_blocks_run_in_order(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = python_blocks(page.read_text(encoding="utf-8"))
    if blocks and not (ASSETS / "embedded" / "model.safetensors").is_file():
        pytest.skip("this installation has no embedded model")
    (tmp_path / "src").symlink_to(ROOT / "src")  # paths are those of a checkout
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__main__"}
    for line, code in blocks:
        exec(compile("\n" * line + code, str(page), "exec"), namespace)  # so that a traceback shows the page's own line


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_relative_links_lead_somewhere(page: Path) -> None:
    targets = links(page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (page.parent / target.partition("#")[0]).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_files_that_are_named_exist(page: Path) -> None:
    files = re.findall(
        r"\b(?:benchmarks|docs|src|tests)/[\w/.-]+\.(?:html|md|py|toml)\b", page.read_text(encoding="utf-8")
    )
    assert [file for file in files if not (ROOT / file).is_file()] == []


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_anchors_are_headings(page: Path) -> None:
    text = outside_code(page.read_text(encoding="utf-8"))
    anchors = [target.partition("#") for target in re.findall(r"\]\(([^)\s:]*#[^)\s]+)", text)]
    missing = [
        f"{file}#{anchor}"
        for file, _, anchor in anchors
        if anchor not in headings((page.parent / file if file else page).read_text(encoding="utf-8"))
    ]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_rows_of_a_table_have_as_many_cells_as_its_head(page: Path) -> None:
    text = outside_code(page.read_text(encoding="utf-8"))
    tables = re.findall(r"(?:^\|.*\n)+", text + "\n", re.MULTILINE)
    counts = [{len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()} for table in tables]
    assert [table for table, count in zip(tables, counts, strict=True) if len(count) > 1] == []


def test_the_python_reference_has_every_public_name() -> None:
    listed = re.findall(r"^::: nextpixel\.(\w+)$", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted({*nextpixel.__all__} - {"__version__"})


def test_the_site_has_every_page() -> None:
    navigation = re.findall(r"[\w/-]+\.(?:md|ipynb)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    pages = [str(path.relative_to(ROOT / "docs")) for path in [*DOCS, *(ROOT / "docs").rglob("*.ipynb")]]
    assert sorted(navigation) == sorted([*pages, "CONTRIBUTING.md", "CHANGELOG.md"])


def test_the_table_of_models_agrees_with_the_code_the_cards_and_the_recipes() -> None:
    def read(path: str) -> str:
        return (ROOT / path).read_text(encoding="utf-8")

    rows = re.findall(r"^\| `?(\w+)(?:`|, `[^`]+`) \| (.+) \|$", read("docs/models.md"), re.MULTILINE)
    models = {name: cells.split(" | ") for name, cells in rows if cells.count("|") == 4}
    sizes = {name: cells.split(" | ") for name, cells in rows if cells.count("|") == 3}
    for name, shape in nextpixel.SIZES.items():
        numbers = (shape.layers, shape.width, shape.heads, shape.parameters)
        assert sizes[name] == [f"{number:,}" for number in numbers]
    for name in ("S", "M", "L"):
        recipe = read(f"src/nextpixel/recipes/imagenet32-{name.lower()}.toml")
        parameters, cost, nats, *_ = models[name]
        assert parameters == f"{nextpixel.SIZES[name.lower()].parameters:,}"
        assert re.search(r"expected  (\S+)", recipe)[1] == re.search(r"[\d.]+", nats)[0]  # type: ignore[index]
        flop = float(re.search(r"cost +(\S+) FLOP", recipe)[1])  # type: ignore[index]
        assert cost.startswith(f"{flop:.1e} FLOP".replace("e+", "e"))
    assert models["XL"][0] == f"{dataclasses.replace(nextpixel.SIZES['xl'], side=64).parameters:,}"
    for name in ("embedded", "photos", "faces"):
        card = read(f"src/nextpixel/assets/{name}/README.md")
        parameters, cost, nats, *_ = models[name]
        assert all(text in card for text in (parameters, cost.split(",")[0], nats.split(" ")[0]))
    assert all(text.removesuffix(" (CIFAR-10)") in read("docs/results.md") for text in models["embedded"][2:4])


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120, "move detail into docs/"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_no_page_holds_both_sides_of_a_merge(page: Path) -> None:
    assert not re.findall(r"^(?:<<<<<<<|>>>>>>>) .*", page.read_text(encoding="utf-8"), re.M)


def test_blocks_and_links_are_found() -> None:
    text = "\n".join(
        [
            "[a](docs/a.md) ![b](b.png 'title') [web](https://x.org) [here](#here) `[c](d)` <img src='e.png'>",
            "```python",
            "x = 1  # [f](g)",
            "```",
            NOT_RUN,
            "```python",
            "import nothing",
            "```",
            "````python",
            "```",
            "````",
            "```sh",
            "ls",
            "```",
        ]
    )
    assert python_blocks(text) == [(2, "x = 1  # [f](g)"), (9, "```")]
    assert links(text) == ["docs/a.md", "b.png", "e.png"]
    assert headings("# Drawing\n\n### Few labels: X-rays, by `probe`") == {"drawing", "few-labels-x-rays-by-probe"}
