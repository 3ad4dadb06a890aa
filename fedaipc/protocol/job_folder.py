"""The files of a signed job, as the coordinator gets them. A run adds its own beside them.

config.toml          settings; of them, what concerns PCs is in the job
job.json, job.sig    the job, and the admission key's signature on it
data.json            what held-back data it is measured on
validation.parquet, test.parquet  that data, public
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from fedaipc import bounds, strict_json
from fedaipc.config import to_toml
from fedaipc.errors import EncodingError, OutputError, RoundError
from fedaipc.files import write_text
from fedaipc.protocol.job import Job, SignedJob
from fedaipc.secagg.roster import ROSTER_FILE, read_roster

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from fedaipc.config import Settings
    from fedaipc.data.prepare import HeldBack
    from fedaipc.data.records import Records
    from fedaipc.model.classifier import Classifier
    from fedaipc.results import WarmUpFacts
    from fedaipc.secagg.roster import Roster

CONFIG_FILE, JOB_FILE, SIGNATURE_FILE = "config.toml", "job.json", "job.sig"
DATA_FILE, VALIDATION_FILE, TEST_FILE = "data.json", "validation.parquet", "test.parquet"
FILES = (CONFIG_FILE, JOB_FILE, SIGNATURE_FILE, DATA_FILE, VALIDATION_FILE, TEST_FILE)


def write_job(
    folder: Path,
    signed: SignedJob,
    settings: Settings,
    held_back: HeldBack,
    *,
    train: Records | None,
    classifier: Classifier,
    model_notes: Sequence[str],
    warm_up: WarmUpFacts | None,
    not_private: Sequence[str],
) -> None:
    """Write everything except the list of members. `train` is what PCs hold, where that is known.

    `model_notes` say what was done to the base; `classifier` is the job's model.

    Raises OSError.
    """
    from fedaipc.model.fit import measure_fit  # transformers; reading jobs does not need it

    held_back.validation.write_parquet(folder / VALIDATION_FILE)
    held_back.test.write_parquet(folder / TEST_FILE)
    tokenizer, most = classifier.tokenizer, classifier.settings.max_length
    fits = {
        "train_fit": None if train is None else measure_fit(tokenizer, train.texts, most),
        "validation_fit": measure_fit(tokenizer, held_back.validation.texts, most),
    }
    facts = {
        "source": settings.data.source if train is not None else "the PCs' own texts",
        "labels": held_back.labels,
        "train": None if train is None else len(train),
        "validation": len(held_back.validation),
        "test": len(held_back.test),
        "notes": held_back.notes,
        **{name: fit and fit.model_dump(mode="json") for name, fit in fits.items()},
        "model_notes": list(model_notes),
        "warm_up": None if warm_up is None else warm_up.model_dump(mode="json"),
        "not_private": list(not_private),
    }
    write_text(folder / DATA_FILE, json.dumps(facts, indent=2))
    write_text(folder / CONFIG_FILE, to_toml(settings))
    write_text(folder / JOB_FILE, signed.job.model_dump_json(indent=2))
    write_text(folder / SIGNATURE_FILE, signed.signature.hex())


def read_job(folder: Path) -> tuple[SignedJob, Roster]:
    """The job and the members of a run folder. Raises OutputError or SecAggError."""
    try:
        job = Job.parse(read_text(folder / JOB_FILE))
    except RoundError:
        raise OutputError(
            f"{folder / JOB_FILE}: comes from another version of fedaipc, or is damaged: have the "
            "job signed again"
        ) from None
    signature = read_text(folder / SIGNATURE_FILE).strip()
    try:
        admission, roster = read_roster(bounds.read_bytes(folder / ROSTER_FILE, bounds.MAX_ROSTER))
        return SignedJob.read(job.model_dump_json(), bytes.fromhex(signature), admission), roster
    except (OSError, ValueError, EncodingError) as error:
        raise OutputError(f"{folder}: job or members cannot be read ({error})") from None


def read_facts(folder: Path) -> dict[str, Any]:
    """What `write_job` put into data.json. Raises OutputError."""
    try:
        return dict(strict_json.parse(read_text(folder / DATA_FILE)))
    except (ValueError, TypeError) as error:
        raise OutputError(f"{folder / DATA_FILE}: damaged ({error})") from None


def read_text(path: Path) -> str:
    """Raises OutputError."""
    try:
        return bounds.read_text(path, bounds.MAX_JOB)
    except OSError as error:
        raise OutputError(f"{path}: cannot be read ({error.strerror}); not a run folder?") from None
    except UnicodeDecodeError:
        raise OutputError(f"{path}: damaged (not UTF-8)") from None
