"""Lay out what the site is built from: docs/, and the pages that lie elsewhere in the repository.

    python scripts/docs_source.py build/docs-source
    python scripts/docs_source.py --check-offline build/docs

Pages outside docs/ (the wire format, the changelog, notebooks) come to `repository/`, under their
own path. Links and pictures are relative to the file that they stand in, so that they work in a
checkout; here they are turned so that they work on the site as well: a page becomes the site's
page, any other file a download, and a folder stays as text.
"""

from __future__ import annotations

import os
import re
import sys
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
ELSEWHERE = (
    "*.md",
    "fedaipc/**/*.md",
    "scripts/**/*.md",
    "simulations/**/*.md",
    "simulations/learn/*.ipynb",
    "tests/**/*.md",
)
PAGES = {".md", ".ipynb"}
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})(\{(?:image|figure|literalinclude|include)\} *(\S+))?")
_LINK = re.compile(
    r"(?P<text>\[(?:[^\[\]]|\[[^\]]*\])*\])\((?P<to>[^()\s]+)(?P<rest>(?: \"[^\"]*\")?)\)"
)
_SOURCE = re.compile(r"(?P<before>\b(?:src|srcset)=\\?\")(?P<to>[^\"\\]+)")
_LOADED = re.compile(
    r"<(?:script|img|iframe|source)\b[^>]*\bsrc(?:set)?=\"(?:https?:)?//"
    r"|<link\b[^>]*\bhref=\"(?:https?:)?//|@import|url\(['\"]?https?:"
)


def layout() -> dict[Path, str]:
    """Files of the site, each with its place in it."""
    own = [p for p in DOCS.rglob("*") if p.is_file() and p.suffix not in {".py", ".pyc"}]
    elsewhere = sorted({p for pattern in ELSEWHERE for p in ROOT.glob(pattern)})
    return {
        **{path: path.relative_to(DOCS).as_posix() for path in sorted(own)},
        **{path: f"repository/{path.relative_to(ROOT).as_posix()}" for path in elsewhere},
    }


def prose(text: str) -> list[tuple[str, bool]]:
    """The lines of a page, and whether each may hold links: those of code blocks do not."""
    lines, fence = [], ""
    for line in text.split("\n"):
        found = _FENCE.match(line)
        if fence:
            closes = found and found[1][0] == fence[0] and len(found[1]) >= len(fence)
            lines.append((line, False))
            fence = "" if closes and not line.strip(" `~") else fence
        else:
            lines.append((line, found is None))
            fence = found[1] if found else ""
    return lines


def turned(page: Path, text: str, site: Path, places: dict[Path, str]) -> str:
    """`text` of `page` with links as they must be at its place in the folder `site`."""
    folder = site / Path(places[page]).parent

    def own(link: str) -> str | None:
        """None where there is nothing to lead to on the site."""
        name, mark, anchor = link.partition("#")
        if not name or re.match(r"[a-z][a-z+.-]*:|/", name):
            return link
        path = Path(os.path.normpath(page.parent / name))
        if path.is_dir() and (path / "README.md").is_file():
            path /= "README.md"
        if path.is_dir():
            return None
        if not path.exists():
            return link  # Sphinx warns of it
        to = site / places[path] if path in places else path
        return Path(os.path.relpath(to, folder)).as_posix() + mark + anchor

    def link(found: re.Match[str]) -> str:
        to = own(found["to"])
        return found["text"][1:-1] if to is None else f"{found['text']}({to}{found['rest']})"

    def source(found: re.Match[str]) -> str:
        return found["before"] + (own(found["to"]) or "")

    parts = []
    for is_prose, lines in groupby(prose(text), lambda pair: pair[1]):
        part = "\n".join(line for line, _ in lines)
        if is_prose:
            part = _SOURCE.sub(source, _LINK.sub(link, part))
        elif (directive := _FENCE.match(part)) and directive[3]:
            part = part.replace(directive[3], own(directive[3]) or directive[3], 1)
        parts.append(part)
    return "\n".join(parts)


def lay_out(site: Path) -> None:
    """Write all files below `site`, and leave alone what is there already, unchanged."""
    places = layout()
    for path, place in places.items():
        content = path.read_bytes()
        if path.suffix in PAGES:
            content = turned(path, content.decode(), site, places).encode()
        target = site / place
        if not target.is_file() or target.read_bytes() != content:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
    for old in [p for p in site.rglob("*") if p.is_file()]:
        if old.relative_to(site).as_posix() not in set(places.values()):
            old.unlink()


def loaded_from_elsewhere(site: Path) -> list[str]:
    """Pages and styles of a built site that load something from the network."""
    files = [*site.rglob("*.html"), *site.rglob("*.css")]
    return [
        f"{path.relative_to(site)}: {found[0][:120]}"
        for path in sorted(files)
        if (found := _LOADED.search(path.read_text(encoding="utf-8")))
    ]


def main() -> None:
    if sys.argv[1:2] == ["--check-offline"]:
        if found := loaded_from_elsewhere(Path(sys.argv[2])):
            sys.exit("the site must open without a network:\n" + "\n".join(found))
        return
    lay_out(Path(sys.argv[1]).resolve())


if __name__ == "__main__":
    main()
