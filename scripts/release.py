"""Build and check a release of the present commit; never upload it.

    scripts/release               # dist/VERSION/: sdist, wheel, SBOM, SHA256SUMS
    scripts/release --rehearsal   # the same with a dirty tree or an undated changelog entry

Refuses a dirty tree, a version that CHANGELOG.md does not date, and versions that differ between
pyproject.toml, fedaipc and CITATION.cff. Builds from the committed files only, with the setuptools
of .venv. Installs the wheel into a fresh environment, which finds its dependencies in .venv, and
runs it there. What to do with the result is for a maintainer to decide.
"""

from __future__ import annotations

import argparse
import email
import email.message
import hashlib
import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import tomllib
import uuid
import venv
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ("requirements", "requirements-cuda", "requirements-cpu", "requirements-extras")
IN_SDIST = ("pyproject.toml", "README.md", "LICENSE", "fedaipc/__init__.py")


class ReleaseError(Exception):
    """Why there is no release, in one line."""


def project() -> dict[str, Any]:
    tree = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    found: dict[str, Any] = tree["project"]
    return found


def check_version(version: str, changelog: str, code: str, citation: str) -> None:
    """Raise ReleaseError unless all of these files name this version, the changelog with a date."""
    if not re.search(rf'^__version__ = "{re.escape(version)}"$', code, re.MULTILINE):
        raise ReleaseError(f"fedaipc/__init__.py: __version__ is not {version}")
    if not re.search(rf"^version: {re.escape(version)}$", citation, re.MULTILINE):
        raise ReleaseError(f"CITATION.cff: version is not {version}")
    entry = re.search(rf"^## \[{re.escape(version)}\] - (.*)$", changelog, re.MULTILINE)
    if entry is None:
        raise ReleaseError(f"CHANGELOG.md: has no entry for {version}")
    if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", entry[1]):
        raise ReleaseError(f"CHANGELOG.md: give the entry for {version} the date of the release")


def check_metadata(metadata: email.message.Message, expected: dict[str, Any]) -> None:
    """Raise ReleaseError unless a package index would show what pyproject.toml says."""
    wanted = {
        "Name": expected["name"],
        "Version": expected["version"],
        "Summary": expected["description"],
        "Requires-Python": expected["requires-python"],
        "License-Expression": expected["license"],
        "Description-Content-Type": "text/markdown",
    }
    for key, value in wanted.items():
        if metadata[key] != value:
            raise ReleaseError(f"metadata: {key} is {metadata[key]!r}, not {value!r}")
    if not str(metadata.get_payload()).strip():
        raise ReleaseError("metadata: the description is empty")


def check_wheel(path: Path, expected: dict[str, Any], files: set[str]) -> None:
    """Raise ReleaseError unless the wheel holds the package's `files`, and no others."""
    with zipfile.ZipFile(path) as wheel:
        names = wheel.namelist()
        folder = f"{expected['name']}-{expected['version']}.dist-info"
        check_metadata(email.message_from_bytes(wheel.read(f"{folder}/METADATA")), expected)
    missing = sorted({*files, f"{folder}/licenses/LICENSE"} - set(names))
    foreign = sorted({name for name in names if not name.startswith(f"{folder}/")} - files)
    if missing or foreign:
        raise ReleaseError(f"{path.name}: lacks {missing}, has {foreign} that do not belong there")


def check_sdist(path: Path, expected: dict[str, Any]) -> None:
    folder = path.name.removesuffix(".tar.gz")
    with tarfile.open(path) as sdist:
        names = set(sdist.getnames())
        info = sdist.extractfile(f"{folder}/PKG-INFO")
        if info is None:
            raise ReleaseError(f"{path.name}: has no PKG-INFO")
        check_metadata(email.message_from_bytes(info.read()), expected)
    if missing := [name for name in IN_SDIST if f"{folder}/{name}" not in names]:
        raise ReleaseError(f"{path.name}: lacks {missing}")


def locked(text: str) -> list[tuple[str, str, str, list[str]]]:
    """Name, version, marker and SHA-256 sums of each package of a lock file."""
    found = []
    for entry in re.split(r"\n(?=\S)", text):
        if match := re.match(r"([A-Za-z0-9._-]+)==([^\s;\\]+)(?: ; ([^\\\n]+?))? *(?:\\|$)", entry):
            hashes = re.findall(r"--hash=sha256:([0-9a-f]{64})", entry)
            found.append((match[1], match[2], match[3] or "", hashes))
    return found


def sbom(expected: dict[str, Any], locks: dict[str, str], when: datetime) -> dict[str, Any]:
    """The software bill of materials, in CycloneDX 1.6: what the lock files install."""
    name, version = expected["name"], expected["version"]
    own = f"pkg:pypi/{name}@{version}"
    components: dict[str, dict[str, Any]] = {}
    for lock, text in locks.items():
        for package, number, marker, hashes in locked(text):
            reference = f"pkg:pypi/{package.lower().replace('_', '-')}@{quote(number)}"
            properties = [{"name": "fedaipc:lock", "value": lock}]
            if marker:
                properties.append({"name": "fedaipc:marker", "value": marker})
            components[reference] = {
                "type": "library",
                "bom-ref": reference,
                "name": package,
                "version": number,
                "purl": reference,
                "properties": properties,
                "externalReferences": [
                    {
                        "type": "distribution",
                        "url": f"https://pypi.org/project/{package}/{number.partition('+')[0]}/",
                        "hashes": [{"alg": "SHA-256", "content": one} for one in hashes],
                    }
                ],
            }
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": uuid.uuid5(uuid.NAMESPACE_URL, f"{own}?{when.isoformat()}").urn,
        "version": 1,
        "metadata": {
            "timestamp": when.isoformat().replace("+00:00", "Z"),
            "component": {
                "type": "library",
                "bom-ref": own,
                "name": name,
                "version": version,
                "purl": own,
                "licenses": [{"license": {"id": expected["license"]}}],
            },
        },
        "components": [components[one] for one in sorted(components)],
    }


def build(source: Path, out: Path, when: datetime) -> tuple[Path, Path]:
    """Source distribution and wheel of the files in `source`."""
    code = (
        "import sys; from setuptools import build_meta as b; out = sys.argv[1];"
        "b.build_sdist(out); b.build_wheel(out)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(out)], cwd=source, text=True, check=False,
        capture_output=True, env={**os.environ, "SOURCE_DATE_EPOCH": f"{when.timestamp():.0f}"},
    )  # fmt: skip
    if done.returncode:
        raise ReleaseError(f"the build failed: {done.stderr.strip()[-500:]}")
    sdist, wheel = sorted(out.glob("*.tar.gz")), sorted(out.glob("*.whl"))
    return sdist[0], wheel[0]


def try_wheel(wheel: Path, version: str, folder: Path) -> None:
    """Install the wheel into a fresh environment in `folder`, and run it there."""
    venv.create(folder, with_pip=True)
    scripts = folder / ("Scripts" if os.name == "nt" else "bin")
    python, here = str(scripts / "python"), str(folder)

    def run(*command: str) -> str:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        done = subprocess.run(
            command, cwd=here, env=environment, text=True, check=False, capture_output=True
        )
        if done.returncode:
            raise ReleaseError(f"{' '.join(command[-4:])}: {done.stderr.strip()[-500:]}")
        return done.stdout

    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel))
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    # Dependencies are those of .venv; a path file there is not read, so fedaipc itself is not.
    (Path(site) / "tested.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    where = run(python, "-c", "import fedaipc; print(fedaipc.__file__)").strip()
    if not where.startswith(site):
        raise ReleaseError(f"the fresh environment imports fedaipc from {where}")
    command = str(scripts / "fedaipc")
    if (said := run(command, "--version").split()[-1]) != version:
        raise ReleaseError(f"fedaipc --version says {said}, not {version}")
    plan = json.loads(
        run(
            command, "privacy", "plan", "--json", "--epsilon", "2", "--delta", "1e-6",
            "--records", "1000", "--batch", "50", "--rounds", "40",
        )
    )  # fmt: skip
    if not plan:
        raise ReleaseError("fedaipc privacy plan computes nothing")


def _git(*words: str) -> str:
    return subprocess.run(
        ["git", *words], cwd=ROOT, text=True, check=True, capture_output=True
    ).stdout


def check_tree(version: str) -> None:
    """Raise ReleaseError unless all is committed and all files name this version."""
    if _git("status", "--porcelain"):
        raise ReleaseError("the tree is dirty: commit or remove what `git status` shows")
    files = ("CHANGELOG.md", "fedaipc/__init__.py", "CITATION.cff")
    check_version(version, *((ROOT / name).read_text(encoding="utf-8") for name in files))


def release(*, rehearsal: bool) -> Path:
    """Build and check everything; the folder with the result. Raises ReleaseError."""
    expected = project()
    version = expected["version"]
    try:
        check_tree(version)
    except ReleaseError as error:
        if not rehearsal:
            raise
        print(f"the rehearsal continues although {error}")
    when = datetime.fromtimestamp(int(_git("log", "-1", "--format=%ct")), UTC)
    out: Path = ROOT / "dist" / version
    if out.exists():
        raise ReleaseError(f"{out}: exists; remove it first")
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "source"
        source.mkdir()
        archive = Path(scratch) / "source.tar"
        _git("archive", "--output", str(archive), "HEAD")
        with tarfile.open(archive) as files:
            files.extractall(source, filter="data")
        made = Path(scratch) / "made"
        made.mkdir()
        sdist, wheel = build(source, made, when)
        check_sdist(sdist, expected)
        package = (source / "fedaipc").rglob("*")
        held = {path.relative_to(source).as_posix() for path in package if path.is_file()}
        check_wheel(wheel, expected, held)
        try_wheel(wheel, version, Path(scratch) / "fresh")
        bill = sbom(
            expected,
            {f"{n}.lock": (source / "scripts" / f"{n}.lock").read_text("utf-8") for n in LOCKS},
            when,
        )
        (made / f"fedaipc-{version}.cdx.json").write_text(
            json.dumps(bill, indent=1) + "\n", "utf-8"
        )
        sums = [
            f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
            for path in sorted(made.iterdir())
        ]
        (made / "SHA256SUMS").write_text("".join(sums), encoding="utf-8")
        out.mkdir(parents=True)
        for path in made.iterdir():
            (out / path.name).write_bytes(path.read_bytes())
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description="Build and check a release; upload nothing.")
    parser.add_argument(
        "--rehearsal", action="store_true", help="dirty tree, undated entry allowed"
    )
    try:
        out = release(rehearsal=parser.parse_args().rehearsal)
    except ReleaseError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{out.relative_to(ROOT)}: built and checked, not uploaded")
    print((out / "SHA256SUMS").read_text(encoding="utf-8"), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
