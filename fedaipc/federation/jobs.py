"""Sign a job: fix all that PCs are asked for, and all that the coordinator measures it on."""

from __future__ import annotations

import secrets
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from fedaipc.config import for_labels
from fedaipc.data.prepare import prepare_held_back
from fedaipc.errors import AdmissionError, os_errors_as
from fedaipc.model.base import copy_base, with_whole_base
from fedaipc.model.classifier import Classifier
from fedaipc.model.warm_up import check_model, warm_base
from fedaipc.privacy.budget import best_filter, check_delta
from fedaipc.protocol.job import Job, SignedJob, make_job
from fedaipc.protocol.job_folder import write_job
from fedaipc.protocol.round_terms import check_noise, check_secagg

if TYPE_CHECKING:
    from collections.abc import Callable

    from fedaipc.config import Settings
    from fedaipc.federation.federation import Federation


def sign_job(
    federation: Federation,
    settings: Settings,
    folder: Path,
    on_warm_up: Callable[[int, int], None] = lambda *_: None,
) -> Job:
    """Write a signed job for all present members into the new `folder`.

    `settings.federation.clients` is replaced by how many members there are. Raises AdmissionError
    where the folder is taken, ConfigError where they are too few for secure aggregation, DataError,
    ModelError, PrivacyError; then no folder is left behind.
    """
    if folder.exists():
        raise AdmissionError(f"{folder}: is there already; give a new folder")
    members = federation.members.active
    if not members:
        raise AdmissionError("the federation has no members yet: admit PCs first")
    settings = _for_members(settings, len(members))
    held_back = prepare_held_back(settings.data)
    settings = for_labels(settings, held_back.labels)
    check_secagg(settings, "admit more PCs: `fedaipc federation admit`")
    classes = [member.size_class for member in members]
    privacy = settings.privacy
    if privacy.private:  # as each PC will
        check_delta(privacy.delta, privacy.unit, public_class=max(classes), clients=len(members))
    before = check_model(settings, held_back)
    settings, warm_up = warm_base(settings, held_back, on_warm_up)
    classifier = before if warm_up is None else Classifier(settings.model, held_back.labels)
    job = make_job(
        settings,
        held_back.labels,
        classifier.layout.hash,
        secrets.token_hex(8),
        classes,
        federation.roster_version,
    )
    check_noise(job, classifier.layout.size)
    if job.privacy.private:  # the coordinator would refuse a budget for not a single round
        best_filter(job.schedule, job.rounds, settings.federation.lifetime_epsilon)
    reasons = ['privacy.kind = "none": neither clip nor noise'] if not job.privacy.private else []
    with os_errors_as(AdmissionError, f"{folder}: cannot be written"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        try:
            write_job(
                made,
                SignedJob.sign(federation.admission.key, job),
                settings,
                held_back,
                train=None,
                classifier=classifier,
                model_notes=before.notes,
                warm_up=warm_up,
                not_private=reasons,
            )
            made.replace(folder)
        except BaseException:
            shutil.rmtree(made, ignore_errors=True)
            raise
    return job


def hand_out_base(
    settings: Settings, out: Path, on_warm_up: Callable[[int, int], None] = lambda *_: None
) -> None:
    """Copy the job's base to the new folder `out`, warmed up if the settings say so.

    Raises AdmissionError where the folder is taken, DataError, ModelError.
    """
    if out.exists():
        raise AdmissionError(f"{out}: is there already; give a new folder")
    held_back = prepare_held_back(settings.data)
    settings, _ = warm_base(settings, held_back, on_warm_up)
    try:
        copy_base(settings.model.base, out)
    except OSError as error:
        shutil.rmtree(out, ignore_errors=True)
        raise AdmissionError(f"{out}: cannot be written ({error.strerror or error})") from None


def _for_members(settings: Settings, pcs: int) -> Settings:
    """Paths that hold from any folder, and as many PCs as there are."""
    model = with_whole_base(settings.model)
    federation = settings.federation.model_copy(update={"clients": pcs})
    return settings.model_copy(update={"model": model, "federation": federation})
