"""Pages as a browser would take them apart, and a text that would do harm on one."""

from __future__ import annotations

from html.parser import HTMLParser

HOSTILE = "\"><script>alert(1)</script><img src=x onerror=y>&amp;'\N{RIGHT-TO-LEFT OVERRIDE}"
VOID = {"meta", "br", "img", "link", "input"}


class Page(HTMLParser):
    """Tags, attributes, ids and text of a page; fails where tags do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
