"""One simulated PC: its owner's file, its records, its ledger, and what it has in the end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedaipc.client.client import OWNER_FILE
from fedaipc.client.key_store import KeyStore
from fedaipc.config import DPSGD, OwnerSettings, Policy, load_owner, to_toml
from fedaipc.errors import PrivacyError
from fedaipc.files import write_text
from fedaipc.privacy.budget import check_delta, size_class
from fedaipc.privacy.ledger import LEDGER_FILE, Ledger
from fedaipc.results import PcResult

if TYPE_CHECKING:
    from pathlib import Path

    from fedaipc.config import FilterKind, Schedule, Settings
    from fedaipc.data.records import Records
    from fedaipc.federation.key import Admission

_RECORDS_FILE = "records.parquet"
_NEW = ".new"


def owner_settings(
    folder: Path, records: int, settings: Settings, admission: Admission, test_seed: int | None
) -> OwnerSettings:
    """What the owner of the PC in `folder` decides; size class, delta and budget stay for life."""
    privacy, federation = settings.privacy, settings.federation
    public_class = size_class(records)
    enrolled = (folder / OWNER_FILE).is_file()
    if enrolled:
        public_class = load_owner(folder / OWNER_FILE).size_class
        if records > public_class:
            raise PrivacyError(
                f"{folder}: enrolled with size class {public_class}, which is fixed, and now "
                "holds more records; use a new --pc-state"
            )
    if enrolled or (folder / LEDGER_FILE).is_file():
        ledger = Ledger(folder / LEDGER_FILE)
        if privacy.private and privacy.unit != ledger.unit:
            raise PrivacyError(
                f"{folder}: its ledger counts per {ledger.unit} permanently; give --set "
                f"privacy.unit={ledger.unit}, or use a new --pc-state"
            )
        for name, now, kept in (
            ("privacy.delta", privacy.delta, ledger.delta),
            ("federation.lifetime_epsilon", federation.lifetime_epsilon, ledger.lifetime_epsilon),
        ):
            if now != kept:
                raise PrivacyError(
                    f"{folder}: its ledger has {name.partition('.')[2]} {kept:g} permanently; "
                    f"give --set {name}={kept:g}, or use a new --pc-state"
                )
    if privacy.kind != "none":
        check_delta(
            privacy.delta, privacy.unit, public_class=public_class, clients=federation.clients
        )
    return OwnerSettings(
        name=folder.name,
        source=f"./{_RECORDS_FILE}",
        size_class=public_class,
        base=settings.model.base,
        admission=admission.key.public.hex(),
        policy=_policy(settings),
        insecure_test_seed=test_seed,
        dropout_rate=federation.dropout_rate,
        dropout_stage=federation.dropout_stage,
        dropout_seed=federation.seed,
        speed=settings.speed,
    )


def _policy(settings: Settings) -> Policy:
    """The policy of an owner who allows what this simulation asks for."""
    usual = Policy()
    return Policy(
        allow_not_private=settings.privacy.kind == "none",
        allow_plain_updates=settings.aggregation.kind == "plain",
        allow_distributed_noise=isinstance(settings.privacy, DPSGD)
        and settings.privacy.distributed,
        max_epsilon=1e9,  # the lifetime budget is the limit here
        max_local_epsilon=1e9,
        max_local_steps=max(usual.max_local_steps, settings.training.local_steps),
        max_length=max(usual.max_length, settings.model.max_length),
    )


def prepare_pc(
    folder: Path, owner: OwnerSettings, records: Records, settings: Settings, kind: FilterKind
) -> Ledger:
    """Write what the PC will hold beside what it holds; make its keys and ledger if it has none."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    identity, path = KeyStore.create(folder).identity, folder / LEDGER_FILE
    if not path.is_file():
        Ledger.create(
            path,
            identity,
            lifetime_epsilon=settings.federation.lifetime_epsilon,
            delta=settings.privacy.delta,
            filter_kind=kind,
            unit=settings.privacy.unit,
        )
    records.write_parquet(folder / f"{_RECORDS_FILE}{_NEW}")
    write_text(folder / f"{OWNER_FILE}{_NEW}", to_toml(owner))
    return Ledger(path, identity)


def join_run(folder: Path) -> None:
    """Let the PC hold what `prepare_pc` wrote."""
    for name in (_RECORDS_FILE, OWNER_FILE):
        (folder / f"{name}{_NEW}").replace(folder / name)


def pc_result(folder: Path, once: Schedule) -> PcResult:
    """What the PC holds and has spent, read from its own folder."""
    import pyarrow.parquet as pq

    owner, ledger = load_owner(folder / OWNER_FILE), Ledger(folder / LEDGER_FILE)
    table = pq.read_table(folder / _RECORDS_FILE)
    exhausted = once.private and not ledger.covers(once)
    groups = table["group"].unique().to_pylist() if "group" in table.column_names else []
    return PcResult(
        name=owner.name,
        size_class=owner.size_class,
        examples=table.num_rows,
        groups=tuple(sorted(g for g in groups if g is not None)),
        epsilon=None if ledger.unprotected else ledger.spent_epsilon(),
        lifetime_epsilon=ledger.lifetime_epsilon,
        filter=ledger.filter_kind,
        charges=len(ledger.charges),
        state="exhausted" if exhausted else "active" if ledger.charges else "absent",
    )
