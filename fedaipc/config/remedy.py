"""How a setting of a source of texts is given, in the form that its reader can use.

A source is set by `data.*` or `warm_up.*` of a job, in a PC's owner.toml, or by enroll's flags.
"""

from __future__ import annotations

FLAGS = {
    "encoding": "--encoding",
    "quoting": "--quoting",
    "header": "--no-header",
    "skip_unusable": "--skip-unusable",
    "text_column": "--text",
    "label_column": "--label",
}
OWNER_FILE = "owner.toml"


def given(section: str, values: dict[str, str | bool]) -> str:
    """`values` as `section` takes them: a job's, OWNER_FILE, or "" for flags."""
    if section == OWNER_FILE:
        return f"{', '.join(f'{k} = {_toml(v)}' for k, v in values.items())} in {OWNER_FILE}"
    if section:
        return " ".join(f"--set {section}.{k}={_plain(v)}" for k, v in values.items())
    return " ".join(FLAGS[k] + ("" if isinstance(v, bool) else f" {v}") for k, v in values.items())


def _plain(value: str | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else value


def _toml(value: str | bool) -> str:
    return _plain(value) if isinstance(value, bool) else f'"{value}"'
