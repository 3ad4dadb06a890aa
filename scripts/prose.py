"""Check the project's English: pages, notebooks, help, messages, docstrings and comments.

    scripts/prose                 # everything; exit code 1 where something is wrong
    scripts/prose README.md       # some files only, and pages of the waiting list too
    scripts/prose --report        # everything, the waiting list too; always exit code 0

The words and phrases are in docs/vocabulary.toml, and so is the waiting list: pages that are not
clean yet. A page that is clean has to leave it. `<!-- prose: off -->` and `<!-- prose: on -->`
enclose what a page quotes. The script needs no network and no package outside the standard library,
except for the help texts, which it takes from the command line itself.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import re
import sys
import tokenize
import tomllib
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT = Path(__file__).resolve().parent.parent
VOCABULARY = ROOT / "docs" / "vocabulary.toml"
PAGES = (
    "*.md", ".github/**/*.md", "docs/**/*.md", "docs/**/*.ipynb", "simulations/**/*.md",
    "simulations/**/*.ipynb", "scripts/**/*.md", "fedaipc/**/*.md",
)  # fmt: skip
CODE = ("fedaipc/**/*.py", "fedaipc/**/*.html.j2")
GLOSSARY = ROOT / "docs" / "reference" / "glossary.md"  # explains for the pages that link to it
CODE_WORD = "X"  # stands where code, a link's target or a value stood


@dataclass(frozen=True)
class Text:
    """A paragraph, message or comment, as a reader sees it."""

    place: str
    line: int
    words: str
    whole: bool = True  # made of sentences, so that their length counts


@dataclass(frozen=True)
class Finding:
    place: str
    line: int
    rule: str
    what: str

    def __str__(self) -> str:
        return f"{self.place}:{self.line}: {self.rule}: {self.what}"


@dataclass(frozen=True)
class Vocabulary:
    """docs/vocabulary.toml, compiled."""

    phrases: tuple[tuple[str, re.Pattern[str], str], ...]  # rule, pattern, what to do instead
    longest: int  # words of a sentence
    known: frozenset[str]  # acronyms that need no definition
    skip: tuple[str, ...]
    waiting: tuple[str, ...]


@cache
def vocabulary() -> Vocabulary:
    tree = tomllib.loads(VOCABULARY.read_text(encoding="utf-8"))
    phrases = [
        (rule, re.compile(rf"(?<![\w-])(?:{pattern})(?![\w-])", re.IGNORECASE), instead)
        for rule in ("private", "idiom", "riddle", "filler")
        for pattern, instead in tree[rule].items()
    ]
    return Vocabulary(
        phrases=tuple(phrases),
        longest=tree["sentences"]["longest"],
        known=frozenset(tree["acronyms"]["known"]),
        skip=tuple(tree["pages"]["skip"]),
        waiting=tuple(tree["pages"]["waiting"]),
    )


# What is wrong with a text


def findings(texts: Sequence[Text]) -> list[Finding]:
    """What the vocabulary and the length of sentences say against these texts."""
    rules = vocabulary()
    found = []
    for text in texts:
        for rule, pattern, instead in rules.phrases:
            found += [
                Finding(text.place, text.line, rule, f"{match[0]!r}: {instead}")
                for match in pattern.finditer(text.words)
            ]
        if text.whole:
            found += [
                Finding(text.place, text.line, "long", f"{count} words: {sentence[:60]}...")
                for sentence in sentences(text.words)
                if (count := len(re.findall(r"\w[\w'.-]*", sentence))) > rules.longest
            ]
    return found


def sentences(words: str) -> list[str]:
    """A paragraph's sentences; a semicolon ends none, since it only hides the length."""
    words = re.sub(r"\b(e\.g|i\.e|et al|cf|vs)\.", r"\1", words)
    return re.split(r"(?<=[.!?])[\"')\]]*\s+|(?<=:)\s+(?=[\"'(\[]?[A-Z0-9])", words)


def undefined(texts: Sequence[Text], elsewhere: str = "") -> list[Finding]:
    """A page's acronyms that neither the vocabulary knows nor a text explains in brackets.

    `elsewhere` is another page that explains some, which this one points to.
    """
    explained = " ".join([*(text.words for text in texts), elsewhere])
    found, seen = [], set(vocabulary().known)
    for text in texts:
        for word in re.findall(r"(?<![\w.-])[A-Z]{2,6}(?![\w-])", text.words):
            if word not in seen and f"({word}" not in explained and f"{word} (" not in explained:
                found.append(Finding(text.place, text.line, "acronym", f"{word} is not explained"))
            seen.add(word)
    return found


# Where texts come from


def markdown(source: str, place: str, start: int = 1) -> list[Text]:
    """Paragraphs, items, headings and cells; no code, no links' targets, no comments."""
    source = re.sub(r"<!-- prose: off -->.*?<!-- prose: on -->", _blank, source, flags=re.DOTALL)
    source = re.sub(r"\A---\n.*?\n---\n", _blank, source, flags=re.DOTALL)
    source = re.sub(r"<!--.*?-->", _blank, source, flags=re.DOTALL)
    found: list[Text] = []
    paragraph: list[str] = []
    first, fence = start, ""
    boxes: set[str] = set()

    def close() -> None:
        if paragraph:
            found.append(Text(place, first, _plain(" ".join(paragraph))))
            paragraph.clear()

    for number, line in enumerate(source.split("\n"), start):
        stripped = line.strip()
        mark = re.match(r"(`{3,}|~{3,}|:{3,})(.*)", stripped)
        if fence:
            fence = "" if stripped == fence else fence
        elif mark and (mark[1] in boxes or re.match(r":|.*\{(note|warning|tip|imp)", mark[0])):
            close()  # a box of prose: its lines are read, its marks are not
            boxes ^= {mark[1]}
        elif mark:
            close()
            fence = mark[1]
        elif stripped.startswith("|"):
            close()
            found += [
                Text(place, number, _plain(cell), whole=False)
                for cell in stripped.strip("|").split("|")
                if re.search(r"\w", cell)
            ]
        elif not stripped or stripped.startswith("#") or re.match(r"([-*+]|\d+\.) ", stripped):
            close()
            first = number
            if stripped:
                paragraph.append(re.sub(r"^([-*+]|\d+\.|#+) *", "", stripped))
            if stripped.startswith("#"):
                close()
        elif not (line.startswith("    ") and not paragraph):  # indented code
            if not paragraph:
                first = number
            paragraph.append(stripped.lstrip("> "))
    close()
    return found


def _blank(match: re.Match[str]) -> str:
    return "\n" * match[0].count("\n")


def _plain(text: str) -> str:
    text = re.sub(r"(`+).+?\1", CODE_WORD, text)
    text = re.sub(r"\{[a-z:]+\}(?=X)", "", text)  # a MyST role
    text = re.sub(r"!?\[([^\]]*)\](\([^)]*\)|\[[^\]]*\])", r"\1", text)
    text = re.sub(r"<https?:[^>]*>|https?:\S+|</?[a-z][^>]*>", CODE_WORD, text)
    return " ".join(re.sub(r"\*\*|(?<!\w)[*_]|[*_](?!\w)|\$[^$]+\$", "", text).split())


def notebook(source: str, place: str) -> list[Text]:
    cells = json.loads(source)["cells"]
    return [
        text
        for number, cell in enumerate(cells, 1)
        if cell["cell_type"] == "markdown"
        for text in markdown("".join(cell["source"]), f"{place}, cell {number}")
    ]


def python(source: str, place: str) -> list[Text]:
    """Docstrings, comments, and strings of three words and more: messages, labels, help."""
    tree = ast.parse(source)
    docstrings, inside = set(), set()
    found: list[Text] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            docstrings.add(node.value)
            if isinstance(node.value.value, str):
                found += _docstring(node.value.value, place, node.lineno)
        if isinstance(node, ast.JoinedStr):
            inside.update(node.values)
    for node in ast.walk(tree):
        if node in docstrings or node in inside:
            continue
        words = _string(node)
        if len(re.findall(r"[A-Za-z]{2,}", words)) > 2 and " " in words.strip():
            found += [
                Text(place, node.lineno, _plain(part))  # type: ignore[attr-defined]
                for part in re.split(r"\n\s*\n", words)
                if not re.search(r"^(from \S+ )?import |\n\w+ = ", part)  # a program, as in a card
            ]
    return found + list(_comments(source, place))


def _docstring(words: str, place: str, line: int) -> Iterator[Text]:
    """Paragraphs and items as whole texts, rows of a table each by itself, no examples."""
    for part in re.split(r"\n\s*\n", words.replace("\b", "    \b")):
        lines = part.strip("\n").split("\n")
        if re.search(r"\S {2,}\S|\|.*\||[├└│]", part):
            for row in lines:
                for cell in re.split(r" {2,}|\|", row.strip()):
                    if not re.search(r"[├└│]|--|^\$", cell):
                        yield Text(place, line, _plain(cell), whole=False)
        elif not re.match(r" {8}|\s*(\$|>>>)|.*\x08", lines[0]):
            for item in re.split(r"\n\s*[-*] ", part):
                yield Text(place, line, _plain(item))
        line += part.count("\n") + 2


def _string(node: ast.AST) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(
            str(part.value) if isinstance(part, ast.Constant) else CODE_WORD for part in node.values
        )
    return ""


def _comments(source: str, place: str) -> Iterator[Text]:
    """Comments on lines that follow each other are one text."""
    lines: list[str] = []
    first = last = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT or re.match(r"#!|# (noqa|type|fmt|ruff):", token.string):
            continue
        words = re.sub(r"# (noqa|type): ?[^-]*(- )?", "", token.string).lstrip("# ")
        alone = not token.line[: token.start[1]].strip()
        if lines and not (alone and token.start[0] == last + 1):
            yield Text(place, first, _plain(" ".join(lines)))
            lines = []
        first = first if lines else token.start[0]
        last = token.start[0] if alone else 0  # what follows the end of a line stands alone
        lines.append(words)
    if lines:
        yield Text(place, first, _plain(" ".join(lines)))


def template(source: str, place: str) -> list[Text]:
    """The text between a Jinja template's tags."""
    source = re.sub(r"<(style|script).*?</\1>", _blank, source, flags=re.DOTALL)
    source = re.sub(r"\{[%#].*?[%#]\}", _blank, source, flags=re.DOTALL)
    source = re.sub(r"\{\{.*?\}\}", CODE_WORD, source, flags=re.DOTALL)
    inline = re.sub(r"</?(a|b|code|em|i|span|strong)\b[^>]*>", "", source)
    parts = re.split(r"<[^>]*>", inline)
    return [Text(place, 1, " ".join(part.split())) for part in parts if len(part.split()) > 2]


def command_help() -> list[Text]:
    """Help texts of every command and option, as the command line shows them."""
    import typer

    from fedaipc.cli.main import app

    return list(_help(typer.main.get_command(app), "fedaipc"))


def _help(command: Any, place: str) -> Iterator[Text]:
    yield from _docstring(command.help or "", f"{place} --help", 1)
    for option in command.params:
        if option_help := getattr(option, "help", None):
            yield Text(f"{place} {'/'.join(option.opts)}", 1, _plain(option_help))
    for name, inner in getattr(command, "commands", {}).items():
        yield from _help(inner, f"{place} {name}")


READERS = {".md": markdown, ".ipynb": notebook, ".py": python, ".j2": template}


def read(path: Path) -> list[Text]:
    texts = READERS[path.suffix](path.read_text(encoding="utf-8"), str(path.relative_to(ROOT)))
    return [text for text in texts if text.words]


def check(path: Path) -> list[Finding]:
    texts = read(path)
    if path.suffix not in {".md", ".ipynb"}:
        return findings(texts)
    pointed = path.parent == GLOSSARY.parent or GLOSSARY.name in path.read_text(encoding="utf-8")
    glossary = (
        " ".join(text.words for text in read(GLOSSARY)) if pointed and GLOSSARY.exists() else ""
    )
    return findings(texts) + undefined(texts, glossary)


def files() -> list[Path]:
    found = {path for pattern in (*PAGES, *CODE) for path in ROOT.glob(pattern)}
    skip = {path for pattern in vocabulary().skip for path in ROOT.glob(pattern)}
    return sorted(found - skip)


def waiting() -> set[Path]:
    return {ROOT / name for name in vocabulary().waiting}


def main() -> int:
    parser = argparse.ArgumentParser(description="Check the project's English.")
    parser.add_argument("files", nargs="*", type=Path, help="instead of everything")
    parser.add_argument("--report", action="store_true", help="show the waiting list's pages too")
    given = parser.parse_args()
    patient = set() if given.files or given.report else waiting()
    found, clean = [], []
    for path in [one.resolve() for one in given.files] or files():
        here = check(path)
        if path not in patient:
            found += here
        elif not here:
            clean.append(path)
    if not given.files:
        found += findings(command_help())
    for one in found:
        print(one)
    for path in clean:
        print(f"{path.relative_to(ROOT)} is clean: take it off the list in docs/vocabulary.toml")
    if found:
        print(", ".join(f"{n} {rule}" for rule, n in Counter(f.rule for f in found).most_common()))
    return int(bool(found or clean) and not given.report)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
