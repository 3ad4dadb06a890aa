"""The pages of the documentation: what in them can be checked."""

from __future__ import annotations

import json
import re
import textwrap
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
_FENCE = re.compile(r"^( *)(`{3,}|~{3,})([^`\n]*)$")
_LINK = re.compile(r"(?<!`)\]\(([^()\s]+)(?: \"[^\"]*\")?\)|<img[^>]*\bsrc=\"([^\"]+)\"")
_NOT_RUN = re.compile(r"<!-- not run: .+ -->")


@dataclass(frozen=True)
class Block:
    """A block of code. `mark` is the comment above it."""

    language: str
    code: str
    line: int
    mark: str

    @property
    def is_run(self) -> bool:
        return self.language == "python" and not _NOT_RUN.fullmatch(self.mark)


@cache
def pages() -> tuple[Path, ...]:
    """All that people read: Markdown, and notebooks."""
    found = [
        *ROOT.glob("*.md"),
        *DOCS.rglob("*.md"),
        *(ROOT / "fedaipc").rglob("*.md"),
        *(ROOT / "scripts").rglob("*.md"),
        *(ROOT / "simulations").rglob("*.md"),
        *(ROOT / "simulations").rglob("*.ipynb"),
        *(ROOT / "tests").rglob("*.md"),
    ]
    return tuple(sorted(found))


@cache
def text_of(page: Path) -> str:
    text = page.read_text(encoding="utf-8")
    if page.suffix != ".ipynb":
        return text
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown"]
    return "\n\n".join("".join(cell["source"]) for cell in cells)


@cache
def _parts(page: Path) -> tuple[tuple[Block, ...], str]:
    """Blocks of code, and the page without them."""
    blocks: list[Block] = []
    prose: list[str] = []
    inside: list[str] | None = None
    fence, language, start = "", "", 0
    for number, line in enumerate(text_of(page).split("\n"), 1):
        found = _FENCE.match(line)
        if inside is None and found:
            inside, fence, language, start = [], found[2], found[3].strip(), number
        elif inside is not None and found and found[2].startswith(fence) and not found[3].strip():
            mark = next((old.strip() for old in reversed(prose) if old.strip()), "")
            blocks.append(Block(language, textwrap.dedent("\n".join(inside)), start, mark))
            prose.append("")
            inside = None
        elif inside is not None:
            inside.append(line)
        else:
            prose.append(line)
    assert inside is None, f"{page}:{start}: a block that does not end"
    return tuple(blocks), "\n".join(prose)


def blocks_of(page: Path) -> tuple[Block, ...]:
    return _parts(page)[0]


def prose_of(page: Path) -> str:
    return _parts(page)[1]


def links_of(page: Path) -> list[str]:
    """What links and pictures lead to, outside of code."""
    prose = re.sub(r"`[^`\n]*`", "``", prose_of(page))
    return [link or picture for link, picture in _LINK.findall(prose)]


@cache
def anchors_of(page: Path) -> frozenset[str]:
    """As GitHub and the site make them from headings."""
    found: dict[str, int] = {}
    names = set(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", prose_of(page)))
    names |= set(re.findall(r"^\(([\w-]+)\)=$", prose_of(page), re.MULTILINE))
    for title in re.findall(r"^#{1,6} +(.+?) *#*$", prose_of(page), re.MULTILINE):
        plain = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", title)
        slug = re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-")
        count = found.get(slug, 0)
        found[slug] = count + 1
        names.add(f"{slug}-{count}" if count else slug)
    return frozenset(names)
