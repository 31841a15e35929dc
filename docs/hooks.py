"""mkdocs: pages link to files of the repository as on a code-hosting page; the site takes these files in."""

import posixpath
import re
from pathlib import Path
from typing import Any

from griffe import Docstring, Extension
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(\]\()([^)\s#]+)")
ALSO = ["CONTRIBUTING.md", "CHANGELOG.md"]  # in the navigation
ARGUMENT = re.compile(r"^(\w+) {2,}(?=\S)", re.MULTILINE)


@event_priority(100)  # before plugins read the list
def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds what pages link to: pages and pictures as they are, sources as a page with the code."""
    found = [file.src_uri for file in files.documentation_pages() if file.src_uri.endswith(".md")]
    wanted = ALSO + [_target(uri, link) for uri in found for link in _links(_repository(uri))]
    while wanted:
        path = wanted.pop()
        if path.startswith("docs/") or not (ROOT / path).is_file() or files.get_file_from_path(_site(path)):
            continue
        if path.endswith((".md", ".png")):
            files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
        else:
            code = (ROOT / path).read_text(encoding="utf-8")
            files.append(File.generated(config, _site(path), content=f"# {path}\n\n````python\n{code}\n````\n"))
        if path.endswith(".md"):
            wanted += [_target(path, link) for link in _links(path)]
    return files


def on_page_markdown(markdown: str, page: Any, files: Files, **_: Any) -> str:
    """Links by the places of files in the repository become links by their places in the site."""
    uri = page.file.src_uri

    def link(found: re.Match[str]) -> str:
        target = _site(_target(uri, found[2]))
        if ":" in found[2] or not files.get_file_from_path(target):
            return found[0]
        return found[1] + posixpath.relpath(target, posixpath.dirname(uri))

    return LINK.sub(link, markdown)


def _links(path: str) -> list[str]:
    return [link for _, link in LINK.findall((ROOT / path).read_text(encoding="utf-8")) if ":" not in link]


def _repository(uri: str) -> str:
    """The path in the repository of a page of the site."""
    return f"docs/{uri}" if (ROOT / "docs" / uri).is_file() else uri


def _target(uri: str, link: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(_repository(uri)), link))


def _site(path: str) -> str:
    """The path in the site of a file of the repository."""
    page = path.removeprefix("docs/")
    return page if page != path or path.endswith((".md", ".png")) else f"{path}.md"


class Arguments(Extension):
    """Lines "name   meaning" of docstrings become a list."""

    def on_object(self, *, obj: Any, **_: Any) -> None:
        if isinstance(obj.docstring, Docstring):
            paragraphs = obj.docstring.value.split("\n\n")
            obj.docstring.value = "\n\n".join(
                re.sub(ARGUMENT, r"- `\1`: ", paragraph) if ARGUMENT.match(paragraph) else paragraph
                for paragraph in paragraphs
            )
