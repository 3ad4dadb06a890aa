"""How a PC comes to belong to a federation, and how it leaves.

All of it happens in the owner's folder: it appears complete or not at all, and what a PC has
spent of its budget is never lost.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedaipc import bounds
from fedaipc.client.client import OWNER_FILE, serving
from fedaipc.client.key_store import FOLDER as KEYS_FOLDER
from fedaipc.client.key_store import SUCCESSOR_FILE, KeyStore, has_keys, owner_of
from fedaipc.client.moving import AUTHORITY_FILE, FEDERATION_FILE, NODE_KEY_FILE, check_not_moved
from fedaipc.config import OwnerSettings, Policy, TextSource, load_owner, to_toml, validated
from fedaipc.data.reading import Fault, shown_names
from fedaipc.data.sources import read_records
from fedaipc.errors import AdmissionError, DataError, SecAggError, os_errors_as
from fedaipc.files import expanded, keep_out_of_git, write_atomic, write_text
from fedaipc.privacy.budget import check_delta, size_class
from fedaipc.privacy.filters import filter_of, is_filter
from fedaipc.privacy.ledger import LEDGER_FILE, Ledger
from fedaipc.protocol.enrollment import Invite, Request
from fedaipc.secagg.keys import SigningKey

if TYPE_CHECKING:
    from fedaipc.data.reading import Reading
    from fedaipc.results import TextFit

_REQUEST_SECONDS = 30 * 24 * 3600
_SIMULATED = ("dropout_rate", "dropout_stage", "dropout_seed")  # not for the owner of a real PC


@dataclass(frozen=True, slots=True)
class Enrolled:
    """What the owner is shown: the request for the federation, and what it was made from.

    `reading` is what of the texts can be used, and what is left out and why; `fit` says how they
    fit the base, None until the base is on this PC. Both are for the owner alone. `ledger` is what
    may be spent and was.
    """

    request: Request
    token: str
    reading: Reading
    fit: TextFit | None
    ledger: Ledger


def enroll(
    folder: Path,
    invite: Invite,
    *,
    name: str,
    source: str,
    text_column: str,
    label_column: str,
    encoding: str = "auto",
    quoting: str = "auto",
    header: bool = True,
    skip_unusable: bool = False,
    base: str | None = None,
    lifetime_epsilon: float | None = None,
    policy: Policy | None = None,
) -> Enrolled:
    """Check the data, make keys and ledger, and write the request.

    The format of the file is fixed here and not detected again in each round, where one record
    could decide it for the others. Most records must be usable, unless `skip_unusable`. The size
    class counts what can be used and has a label that the invite lists.

    Without `base` and `lifetime_epsilon` the invite's advice counts. In a folder that a PC has left
    its ledger is continued, if the key that it left signed the last line: what was spent stays
    spent. A budget above the advice must be asked for. Raises AdmissionError where the folder is
    taken or cannot be written, ConfigError, DataError, PrivacyError or LedgerError; then no new
    folder is left behind, and an existing one is unchanged.
    """
    check_not_moved(folder)
    if (folder / OWNER_FILE).exists():
        # Not a new folder: it would start a second budget for the same texts.
        raise AdmissionError(
            f"{folder}: a PC is enrolled here already; change its {OWNER_FILE}, print its request "
            f"again with `fedaipc client enroll --again --folder {folder}`, or run `fedaipc client "
            f"leave --folder {folder}` and enroll in the same folder"
        )
    again = (folder / LEDGER_FILE).is_file()
    if folder.exists() and any(folder.iterdir()) and not again:
        raise AdmissionError(f"{folder}: not empty; give a new folder")
    how = {
        "source": source,
        "text_column": text_column,
        "label_column": label_column,
        "encoding": encoding,
        "quoting": quoting,
        "header": header,
    }
    reading = read_records(source, validated(TextSource, how), labels=invite.labels or None)
    _check_usable(reading, invite, skip_unusable=skip_unusable)
    public_class = size_class(len(reading.records))
    # Among one client no delta is too large: how many there are is known when a job is signed.
    check_delta(invite.delta, invite.unit, public_class=public_class, clients=1)
    if again:
        lifetime_epsilon = _kept_budget(folder, invite, lifetime_epsilon)
    path = expanded(source)
    owner = validated(
        OwnerSettings,
        {
            **how,
            "name": name,
            "source": str(path.resolve()) if path.exists() else source,
            "encoding": reading.encoding,
            "quoting": reading.quoting,
            "size_class": public_class,
            "base": base or invite.base,
            "admission": invite.issuer,
            "server": invite.address,
            "policy": policy or Policy(),
        },
    )
    if reading.dropped:  # as each round reads them, so that what is advised is for owner.toml
        reading = read_records(owner.source, owner, labels=invite.labels or None)
    with os_errors_as(AdmissionError, f"{folder}: cannot be written"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
            made = Path(temporary) / "pc"
            made.mkdir(mode=0o700)
            if again:
                _fill_again(made, folder, owner, invite)
            else:
                _fill(made, owner, invite, lifetime_epsilon or invite.lifetime_epsilon)
                with suppress(OSError):
                    folder.rmdir()  # an empty folder of this name
                made.replace(folder)
    return _enrolled(folder, reading)


def request_again(folder: Path) -> Enrolled:
    """The request of an enrolled PC, again: for one that was lost or has expired."""
    check_not_moved(folder)
    owner = load_owner(folder / OWNER_FILE)
    return _enrolled(folder, read_records(owner.source, owner))


def _check_usable(reading: Reading, invite: Invite, *, skip_unusable: bool) -> None:
    """Raise DataError where none, or only a few, of the records can be used."""
    other = sum(part.count for part in reading.dropped if part.fault is Fault.UNKNOWN)
    if other and not len(reading.records):
        raise DataError(
            f"{reading.where}: no record has a label that the federation trains: "
            f"{shown_names(invite.labels)}; is the label column right? {reading.left_out_text()}"
        )
    used, unusable = len(reading.some()), reading.left_out - other
    if unusable > used and not skip_unusable:
        raise DataError(
            f"{reading.where}: {reading.left_out_text()}; mend them, or continue with {used:,} "
            "records by --skip-unusable"
        )


def leave(folder: Path) -> None:
    """Delete the PC's keys; the ledger stays, since what was spent stays spent.

    Before, the ledger is handed over to a fresh key that stays in the folder for the next
    enrollment: no other ledger can take its place. Raises AdmissionError, or LedgerError where
    that cannot be done; then nothing has changed.
    """
    if not (folder / OWNER_FILE).is_file():
        raise AdmissionError(f"{folder}: no PC is enrolled here")
    with serving(folder):
        _leave(folder)


def _leave(folder: Path) -> None:
    path = folder / SUCCESSOR_FILE
    with os_errors_as(AdmissionError, f"{folder}: cannot be changed"):
        if has_keys(folder):  # otherwise a leave was cut off below
            identity = KeyStore(folder).identity
            # An existing one comes from a leave that was cut off, or from an enrollment, and is in
            # use.
            if not path.is_file() or bounds.read_bytes(path, bounds.MAX_KEY) == identity.secret():
                write_atomic(path, SigningKey().secret(), private=True)
            successor = SigningKey(bounds.read_bytes(path, bounds.MAX_KEY))
            Ledger.hand_over(folder / LEDGER_FILE, identity, successor)
            shutil.rmtree(folder / KEYS_FOLDER)
        for name in (NODE_KEY_FILE, OWNER_FILE):
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / "cache", ignore_errors=True)


def _kept_budget(folder: Path, invite: Invite, wanted: float | None) -> float:
    """The budget of the ledger that a PC left here, which is continued."""
    path, key = folder / LEDGER_FILE, _successor(folder)
    ledger = Ledger(path, key)
    if ledger.unit != invite.unit:
        raise AdmissionError(
            f"{path}: this PC's ledger counts per {ledger.unit} permanently, and the invite is for "
            f"jobs that count per {invite.unit}; a new folder would have a budget of its own, on "
            "the same texts"
        )
    for what, kept, now in (
        ("delta", ledger.delta, invite.delta),
        ("lifetime_epsilon", ledger.lifetime_epsilon, wanted or ledger.lifetime_epsilon),
    ):
        if kept != now:
            raise AdmissionError(
                f"{path}: this PC's ledger has {what} {kept:g} permanently, and not {now:g}"
            )
    if wanted is None and ledger.lifetime_epsilon > invite.lifetime_epsilon:
        raise AdmissionError(
            f"{path}: this PC's ledger allows epsilon {ledger.lifetime_epsilon:g} for life, and "
            f"the invite advises {invite.lifetime_epsilon:g}: give --epsilon "
            f"{ledger.lifetime_epsilon:g} if that is what you want"
        )
    return ledger.lifetime_epsilon


def _successor(folder: Path) -> SigningKey:
    """The key that a PC left here for its next enrollment. Raises AdmissionError."""
    key = None
    with suppress(SecAggError):
        key = owner_of(folder)
    if key is None:
        raise AdmissionError(
            f"{folder}: holds a ledger, and not the key that `fedaipc client leave` keeps for it, "
            "so nothing shows who its owner is: enroll in a new folder"
        )
    return key


def _fill_again(made: Path, folder: Path, owner: OwnerSettings, invite: Invite) -> None:
    """New keys and settings beside the ledger that is in `folder`; owner.toml, last, makes a PC."""
    _keys(made, _successor(folder))
    _facts(made, owner, invite)
    shutil.rmtree(folder / KEYS_FOLDER, ignore_errors=True)
    (made / KEYS_FOLDER).replace(folder / KEYS_FOLDER)
    for name in (NODE_KEY_FILE, AUTHORITY_FILE, FEDERATION_FILE, OWNER_FILE):
        (made / name).replace(folder / name)
    (folder / SUCCESSOR_FILE).unlink(missing_ok=True)


def _fill(folder: Path, owner: OwnerSettings, invite: Invite, lifetime: float) -> None:
    _keys(folder)
    if not is_filter(invite.filter):
        raise AdmissionError("the invite was written by a newer fedaipc; update this one")
    kept = filter_of(invite.filter)  # for the advised budget; it may be useless for another one
    if lifetime != invite.lifetime_epsilon:
        kept = kept.at_budget(lifetime, invite.delta)
    identity = KeyStore(folder).identity
    Ledger.create(
        folder / LEDGER_FILE,
        identity,
        lifetime_epsilon=lifetime,
        delta=invite.delta,
        filter_kind=kept.kind,
        unit=invite.unit,
    )
    _facts(folder, owner, invite)


def _keys(folder: Path, identity: SigningKey | None = None) -> None:
    KeyStore.create(folder, identity)
    key = ec.generate_private_key(ec.SECP384R1())  # as Flower's node authentication wants
    write_atomic(
        folder / NODE_KEY_FILE,
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
        private=True,
    )


def _facts(folder: Path, owner: OwnerSettings, invite: Invite) -> None:
    keep_out_of_git(folder)
    write_text(folder / AUTHORITY_FILE, invite.authority.strip())
    write_text(folder / FEDERATION_FILE, invite.federation)
    write_text(folder / OWNER_FILE, to_toml(owner, without=_SIMULATED))


def _enrolled(folder: Path, reading: Reading) -> Enrolled:
    owner, key_store = load_owner(folder / OWNER_FILE), KeyStore(folder)
    key = serialization.load_pem_private_key(
        bounds.read_bytes(folder / NODE_KEY_FILE, bounds.MAX_KEY), password=None
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    request = Request(
        federation=bounds.read_text(folder / FEDERATION_FILE, bounds.MAX_KEY).strip(),
        issuer=key_store.identity.public.hex(),
        not_after=int(time.time()) + _REQUEST_SECONDS,
        name=owner.name,
        node_key=public.decode(),
        size_class=owner.size_class,
    )
    from fedaipc.model.fit import fit_of_base  # brings transformers

    fit, ledger = fit_of_base(owner.base, reading.records.texts), Ledger(folder / LEDGER_FILE)
    return Enrolled(request, request.write(key_store.identity), reading, fit, ledger)
