"""A release is refused unless its version, metadata, files and bill of materials are right."""

from __future__ import annotations

import email.message
import importlib.util
import json
import re
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
WHEN = datetime(2030, 1, 2, tzinfo=UTC)


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("release", ROOT / "scripts" / "release.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


release = _load()
PROJECT: dict[str, Any] = release.project()
GOOD = ("## [1.2.0] - 2030-01-02\n", '__version__ = "1.2.0"\n', "version: 1.2.0\n")


def metadata(**changes: str) -> email.message.Message:
    message = email.message.Message()
    fields = {
        "Name": PROJECT["name"],
        "Version": PROJECT["version"],
        "Summary": PROJECT["description"],
        "Requires_Python": PROJECT["requires-python"],
        "License_Expression": PROJECT["license"],
        "Description_Content_Type": "text/markdown",
    }
    for key, value in (fields | changes).items():
        message[key.replace("_", "-")] = value
    message.set_payload("# fedaipc")
    return message


def test_a_version_that_all_files_name_passes() -> None:
    release.check_version("1.2.0", *GOOD)


@pytest.mark.parametrize(
    ("place", "text", "message"),
    [
        (0, "## [1.1.0] - 2030-01-02\n", "has no entry for 1.2.0"),
        (0, "## [1.2.0] - Unreleased\n", "the date of the release"),
        (1, '__version__ = "1.2.0.dev"\n', "__version__ is not 1.2.0"),
        (2, "cff-version: 1.2.0\nversion: 1.1.0\n", "CITATION.cff"),
    ],
)
def test_a_version_that_a_file_lacks_is_refused(place: int, text: str, message: str) -> None:
    files = [*GOOD]
    files[place] = text
    with pytest.raises(release.ReleaseError, match=re.escape(message)):
        release.check_version("1.2.0", *files)


def test_the_project_s_own_files_name_one_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    dated = changelog.replace("Unreleased", "2030-01-02")
    others = ((ROOT / name).read_text("utf-8") for name in ("fedaipc/__init__.py", "CITATION.cff"))
    release.check_version(PROJECT["version"], dated, *others)


def test_metadata_has_to_say_what_pyproject_says() -> None:
    release.check_metadata(metadata(), PROJECT)
    with pytest.raises(release.ReleaseError, match="Version is '0'"):
        release.check_metadata(metadata(Version="0"), PROJECT)


@pytest.mark.parametrize(("extra", "left_out"), [("tests/__init__.py", ""), ("", "fedaipc/a.py")])
def test_a_wheel_with_other_files_is_refused(tmp_path: Path, extra: str, left_out: str) -> None:
    files = {"fedaipc/a.py", "fedaipc/py.typed"}
    folder = f"fedaipc-{PROJECT['version']}.dist-info"
    for name, held in (("good", files), ("bad", {*files, extra} - {left_out, ""})):
        path = tmp_path / f"{name}.whl"
        with zipfile.ZipFile(path, "w") as wheel:
            wheel.writestr(f"{folder}/METADATA", metadata().as_string())
            wheel.writestr(f"{folder}/licenses/LICENSE", "")
            for one in held:
                wheel.writestr(one, "")
    release.check_wheel(tmp_path / "good.whl", PROJECT, files)
    with pytest.raises(release.ReleaseError, match="lacks"):
        release.check_wheel(tmp_path / "bad.whl", PROJECT, files)


def test_the_bill_of_materials_names_every_locked_package_with_its_sums() -> None:
    locks = {name: (ROOT / "scripts" / f"{name}.lock").read_text("utf-8") for name in release.LOCKS}
    bill = release.sbom(PROJECT, locks, WHEN)
    pinned = {line for text in locks.values() for line in re.findall(r"(?m)^\S+==[^\s;]+", text)}
    assert {f"{one['name']}=={one['version']}" for one in bill["components"]} == pinned
    references = [one["bom-ref"] for one in bill["components"]]
    assert len(references) == len(set(references))
    assert all(one["externalReferences"][0]["hashes"] for one in bill["components"])
    sums = sum(len(one["externalReferences"][0]["hashes"]) for one in bill["components"])
    assert sums == sum(text.count("--hash=sha256:") for text in locks.values())
    assert bill == json.loads(json.dumps(bill)) == release.sbom(PROJECT, locks, WHEN)
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")


def test_a_marker_of_a_lock_file_stays_with_its_package() -> None:
    entry = f"a-b==1.0 ; sys_platform == 'win32' \\\n    --hash=sha256:{'0' * 64}"
    assert release.locked(f"# comment\n{entry}\n") == [
        ("a-b", "1.0", "sys_platform == 'win32'", ["0" * 64])
    ]
