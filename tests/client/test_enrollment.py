"""Enrollment: data checked, keys and ledger made, a request written; or nothing at all."""

from __future__ import annotations

import json
import os
import shutil
import stat
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from fedaipc.client.client import Client
from fedaipc.client.enrollment import Enrolled, enroll, leave, request_again
from fedaipc.client.key_store import KeyStore
from fedaipc.client.moving import move_in, move_out
from fedaipc.config import Policy, load_owner
from fedaipc.errors import (
    AdmissionError,
    ConfigError,
    DataError,
    FedaipcError,
    LedgerError,
    PrivacyError,
)
from fedaipc.federation.federation import Federation
from fedaipc.privacy.ledger import Charge, Ledger
from fedaipc.protocol.enrollment import Invite, Request
from fedaipc.secagg.keys import SigningKey
from tests.support.schedules import dp_sgd

SECRET = "zq7private"


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return Federation.create(tmp_path / "acme", "fleet.example:8443", ["fleet.example"])


@pytest.fixture
def invite(federation: Federation) -> Invite:
    return Invite.read(
        federation.invite(
            days=3, base="minilm-l6", labels=("no", "yes"), lifetime_epsilon=8.0, unit="record",
            delta=1e-5, filter_kind=4.0,
        )
    )  # fmt: skip


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "mine.csv"
    lines = [f"{SECRET} {n},{('no', 'yes', 'maybe')[n % 3]}" for n in range(90)]
    path.write_text("body,stars\n" + "\n".join(lines))
    return path


def enrolled(folder: Path, invite: Invite, data: Path, **changes: Any) -> Enrolled:
    values = {"name": "office-1", "source": str(data), "text_column": "body",
              "label_column": "stars", **changes}  # fmt: skip
    return enroll(folder, invite, **values)


def test_a_pc_is_made_and_its_request_can_be_admitted(
    tmp_path: Path, federation: Federation, invite: Invite, data: Path
) -> None:
    found = enrolled(tmp_path / "pc", invite, data)
    assert (len(found.reading.records), found.reading.left_out) == (60, 30)
    federation.admit([Request.read(found.token)])
    (member,) = federation.members.active
    owner, key_store = load_owner(tmp_path / "pc" / "owner.toml"), KeyStore(tmp_path / "pc")
    assert member.identity == key_store.identity.public.hex()
    assert (owner.admission, owner.server) == (federation.facts.admission, "fleet.example:8443")
    assert (owner.size_class, member.size_class) == (64, 64)  # of what the federation trains
    assert owner.policy == Policy()
    assert Ledger(tmp_path / "pc" / "ledger.jsonl").lifetime_epsilon == 8.0
    roster = (federation.folder / "server" / "roster.bin").read_bytes()[32:]
    Client(tmp_path / "pc").key_store.pin(roster, bytes.fromhex(owner.admission))


def test_what_leaves_holds_no_text_no_label_and_no_count(
    tmp_path: Path, invite: Invite, data: Path
) -> None:
    found = enrolled(tmp_path / "pc", invite, data)
    said = json.dumps(found.request.model_dump(mode="json"))
    assert SECRET not in said
    assert "maybe" not in said
    assert "90" not in json.dumps({**found.request.model_dump(mode="json"), "issuer": "",
                                   "node_key": "", "not_after": 0, "federation": ""})  # fmt: skip


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such rights")
def test_keys_are_the_owners_alone(tmp_path: Path, invite: Invite, data: Path) -> None:
    enrolled(tmp_path / "pc", invite, data)
    assert stat.S_IMODE((tmp_path / "pc").stat().st_mode) == 0o700
    for name in ("node.key", "keys/identity.key", "ledger.jsonl"):
        assert stat.S_IMODE((tmp_path / "pc" / name).stat().st_mode) == 0o600


def test_git_passes_over_a_pcs_folder(tmp_path: Path, invite: Invite, data: Path) -> None:
    enrolled(tmp_path / "old", invite, data)
    move_out(tmp_path / "old", tmp_path / "file.pc")
    move_in(tmp_path / "file.pc", tmp_path / "new")
    for name in ("old", "new"):
        assert (tmp_path / name / ".gitignore").read_text() == "*\n"


def test_the_owners_own_choices_count(tmp_path: Path, invite: Invite, data: Path) -> None:
    policy = Policy(max_epsilon=2.0)
    enrolled(tmp_path / "pc", invite, data, base="other", lifetime_epsilon=3.0, policy=policy)
    owner = load_owner(tmp_path / "pc" / "owner.toml")
    assert (owner.base, owner.policy) == ("other", policy)
    assert Ledger(tmp_path / "pc" / "ledger.jsonl").lifetime_epsilon == 3.0


def test_a_new_ledger_has_the_filter_of_the_invite(
    tmp_path: Path, invite: Invite, data: Path
) -> None:
    """With another budget than advised: another order, chosen for plain noise, or the Gaussian."""
    assert enrolled(tmp_path / "a", invite, data).ledger.filter_kind == 4.0
    other = enrolled(tmp_path / "b", invite, data, lifetime_epsilon=0.5).ledger.filter_kind
    assert isinstance(other, float)
    assert other > 4
    gaussian = invite.model_copy(update={"filter": "gaussian"})
    for name, lifetime in (("c", 8.0), ("d", 0.001)):
        found = enrolled(tmp_path / name, gaussian, data, lifetime_epsilon=lifetime)
        assert found.ledger.filter_kind == "gaussian"


def test_an_invite_with_a_filter_of_a_newer_version_is_refused(
    tmp_path: Path, invite: Invite, data: Path
) -> None:
    newer = invite.model_copy(update={"filter": 4.05})
    with pytest.raises(AdmissionError, match="written by a newer fedaipc"):
        enrolled(tmp_path / "pc", newer, data)
    assert not (tmp_path / "pc").exists()


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"source": "nowhere.csv"}, DataError),
        ({"text_column": "text"}, DataError),
        ({"lifetime_epsilon": 1e-9}, FedaipcError),
        ({"name": "no name"}, Exception),
    ],
    ids=str,
)
def test_what_cannot_be_leaves_no_folder(
    tmp_path: Path, invite: Invite, data: Path, change: dict[str, Any], kind: type[Exception]
) -> None:
    with pytest.raises(kind):
        enrolled(tmp_path / "pc", invite, data, **change)
    assert not (tmp_path / "pc").exists()
    assert not list(tmp_path.glob(".pc.*"))


def latin(tmp_path: Path, accented: int, plain: int) -> Path:
    """So many rows with and without a letter that UTF-8 writes otherwise."""
    lines = [f"caf\u00e9 {n},no" for n in range(accented)] + [f"b {n},yes" for n in range(plain)]
    path = tmp_path / "latin.csv"
    path.write_bytes(("body,stars\n" + "\n".join(lines)).encode("latin-1"))
    return path


def test_data_of_which_most_cannot_be_used_is_refused_with_numbers_and_a_remedy(
    tmp_path: Path, invite: Invite
) -> None:
    """48 of 60 rows once went without a word, and the size class was made from 12."""
    data = latin(tmp_path, 48, 12)
    with pytest.raises(DataError) as caught:
        enrolled(tmp_path / "pc", invite, data)
    said = str(caught.value)
    assert (
        "latin.csv: 48 of 60 records cannot be used: bytes that are not valid in this encoding"
        in said
    )
    assert "(lines 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 38 more)" in said
    assert not (tmp_path / "pc").exists()
    enrolled(tmp_path / "pc", invite, data, encoding="cp1252")  # as the error says
    owner = load_owner(tmp_path / "pc" / "owner.toml")
    assert (owner.size_class, owner.encoding) == (64, "cp1252")
    enrolled(tmp_path / "skipped", invite, data, skip_unusable=True)
    assert load_owner(tmp_path / "skipped" / "owner.toml").size_class == 32


def test_a_few_records_that_cannot_be_used_are_told_to_the_owner_and_to_nobody_else(
    tmp_path: Path, invite: Invite
) -> None:
    found = enrolled(tmp_path / "pc", invite, latin(tmp_path, 3, 30))
    assert "3 of 33 records cannot be used" in found.reading.left_out_text()
    assert "(lines 2, 3, 4)" in found.reading.left_out_text()
    clean = enrolled(tmp_path / "clean", invite, latin(tmp_path, 0, 30))
    told = {"name", "size_class", "federation"}
    assert found.request.model_dump(include=told) == clean.request.model_dump(include=told)
    assert found.request.model_fields_set == clean.request.model_fields_set


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.csv", 'body,stars\nx,no\n"y, z",yes\n', ("utf-8", "line")),
        ("a.csv", 'body,stars\nx,no\n"y\nz",yes\n', ("utf-8", "csv")),
        ("a.tsv", "body\tstars\nx\tno\n", ("utf-8", "none")),
        ("a.csv", "body,stars\nx,no\n".encode("utf-16"), ("utf-16", "line")),
    ],
)
def test_how_a_file_is_written_is_fixed_at_enrolment(
    tmp_path: Path, invite: Invite, name: str, content: str | bytes, expected: tuple[str, str]
) -> None:
    """Found out anew in each round, one record could decide how the others are read."""
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    enrolled(tmp_path / "pc", invite, path)
    owner = load_owner(tmp_path / "pc" / "owner.toml")
    assert (owner.encoding, owner.quoting) == expected


def test_a_text_that_swallows_records_is_asked_about(tmp_path: Path, invite: Invite) -> None:
    path = tmp_path / "a.csv"
    path.write_text('stars,body\nno,"A\nyes,B\nno,C"\nyes,D\n')
    with pytest.raises(DataError, match="lines that look like records"):
        enrolled(tmp_path / "pc", invite, path)
    found = enrolled(tmp_path / "pc", invite, path, quoting="line")
    assert found.reading.left_out_text().startswith(
        "1 of 4 records cannot be used: an unclosed quotation mark"
    )
    assert "(line 2)" in found.reading.left_out_text()


def test_labels_that_the_federation_does_not_train_are_named(
    tmp_path: Path, invite: Invite, data: Path
) -> None:
    assert "'maybe'" in enrolled(tmp_path / "pc", invite, data).reading.left_out_text()
    data.write_text("body,stars\nx,No\ny,Yes\n")
    with pytest.raises(DataError, match=r"'No' \(almost the same as 'no'\), 'Yes' \("):
        enrolled(tmp_path / "other", invite, data)


@pytest.mark.parametrize("change", [{"name": "no name"}, {"encoding": "x"}, {"header": False}])
def test_a_setting_that_cannot_be_is_one_line(
    tmp_path: Path, invite: Invite, data: Path, change: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError) as caught:
        enrolled(tmp_path / "pc", invite, data, **change)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "pc").exists()


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there")
def test_a_file_name_that_is_not_utf8_is_refused_since_no_settings_can_hold_it(
    tmp_path: Path, invite: Invite, data: Path
) -> None:
    odd = Path(os.fsdecode(bytes(tmp_path) + b"/caf\xe9.csv"))
    data.rename(odd)
    with pytest.raises(ConfigError) as caught:
        enrolled(tmp_path / "pc", invite, odd)
    assert "UTF-8" in str(caught.value)
    str(caught.value).encode()


def test_a_delta_too_large_for_the_data_is_refused(
    tmp_path: Path, invite: Invite, data: Path
) -> None:
    loose = invite.model_copy(update={"delta": 0.005})
    with pytest.raises(PrivacyError, match="delta"):
        enrolled(tmp_path / "pc", loose, data)


def test_no_pc_is_made_over_another(tmp_path: Path, invite: Invite, data: Path) -> None:
    enrolled(tmp_path / "pc", invite, data)
    before = (tmp_path / "pc" / "keys" / "identity.key").read_bytes()
    with pytest.raises(AdmissionError, match=r"--again.* client leave.* same folder") as caught:
        enrolled(tmp_path / "pc", invite, data)
    assert "new folder" not in str(caught.value)  # a second budget for the same texts
    assert (tmp_path / "pc" / "keys" / "identity.key").read_bytes() == before


def test_a_folder_with_something_else_in_it_is_not_taken(
    tmp_path: Path, invite: Invite, data: Path
) -> None:
    (tmp_path / "pc").mkdir()
    (tmp_path / "pc" / "notes.txt").touch()
    with pytest.raises(AdmissionError, match="not empty; give a new folder"):
        enrolled(tmp_path / "pc", invite, data)


def test_what_is_advised_once_a_pc_is_enrolled_is_for_its_owner_file(
    tmp_path: Path, invite: Invite
) -> None:
    for found in (
        enrolled(tmp_path / "pc", invite, latin(tmp_path, 3, 30)),
        request_again(tmp_path / "pc"),
    ):
        said = found.reading.left_out_text()
        assert 'encoding = "cp1252" in owner.toml' in said
        assert "--encoding" not in said
    path = tmp_path / "pc" / "owner.toml"
    path.write_text(path.read_text().replace('encoding = "utf-8"', 'encoding = "cp1252"'))
    assert len(request_again(tmp_path / "pc").reading.records) == 33


def test_the_request_can_be_had_again(tmp_path: Path, invite: Invite, data: Path) -> None:
    first = enrolled(tmp_path / "pc", invite, data)
    second = request_again(tmp_path / "pc")
    assert second.request.model_copy(update={"not_after": 0}) == first.request.model_copy(
        update={"not_after": 0}
    )


def test_who_leaves_keeps_the_ledger_and_no_key(tmp_path: Path, invite: Invite, data: Path) -> None:
    enrolled(tmp_path / "pc", invite, data)
    leave(tmp_path / "pc")
    left = {path.name for path in (tmp_path / "pc").rglob("*") if path.is_file()}
    assert "ledger.jsonl" in left
    assert not left & {"identity.key", "node.key", "owner.toml"}
    with pytest.raises(AdmissionError, match="no PC"):
        leave(tmp_path / "pc")


def test_who_enrols_again_goes_on_with_what_was_spent(
    tmp_path: Path, invite: Invite, data: Path
) -> None:
    folder, path = tmp_path / "pc", tmp_path / "pc" / "ledger.jsonl"
    enrolled(folder, invite, data)
    step = dp_sgd(noise_multiplier=1.0, sampling_rate=0.1, steps=2)
    charge = Charge(run="r", round=1, attempt=1, schedule=step)
    first = KeyStore(folder).identity
    Ledger(path, first).charge(charge)
    before = path.read_bytes()
    leave(folder)
    spent = path.read_bytes()
    assert spent.startswith(before)
    for change in ({"lifetime_epsilon": 4.0}, {"source": "nowhere.csv"}):
        with pytest.raises(FedaipcError):
            enrolled(folder, invite, data, **change)
    other = invite.model_copy(update={"delta": 1e-6})
    with pytest.raises(AdmissionError, match="delta 1e-05 permanently"):
        enrolled(folder, other, data)
    assert path.read_bytes() == spent
    assert not (folder / "owner.toml").exists()

    enrolled(folder, invite, data, name="office-2")
    second = KeyStore(folder).identity
    assert second.public != first.public
    assert Ledger(path, second).charges == (charge,)
    assert path.read_bytes() == spent
    assert load_owner(folder / "owner.toml").name == "office-2"
    assert not (folder / "successor.key").exists()
    with pytest.raises(AdmissionError, match="enrolled here already"):
        enrolled(folder, invite, data)


def test_an_older_ledger_is_refused_also_by_who_enrols_again(
    tmp_path: Path, invite: Invite, data: Path
) -> None:
    folder, path = tmp_path / "pc", tmp_path / "pc" / "ledger.jsonl"
    enrolled(folder, invite, data)
    older = path.read_bytes()
    key_store = KeyStore(folder)
    step = dp_sgd(noise_multiplier=1.0, sampling_rate=0.1, steps=2)
    ledger = Ledger(path, key_store.identity)
    ledger.charge(Charge(run="r", round=1, attempt=1, schedule=step))
    leave(folder)
    spent = path.read_bytes()
    for other in (older, older + spent.splitlines(keepends=True)[1]):  # without the last line
        path.write_bytes(other)
        with pytest.raises(LedgerError, match="another key than this PC's"):
            enrolled(folder, invite, data)
    path.write_bytes(spent)
    enrolled(folder, invite, data)
    assert len(Ledger(path, KeyStore(folder).identity).charges) == 1


@pytest.mark.parametrize("step", ["ledger", "keys", "owner.toml"])
def test_a_leave_that_was_cut_off_can_be_done_again(
    tmp_path: Path, invite: Invite, data: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    folder = tmp_path / "pc"
    enrolled(folder, invite, data)

    def fails(*_: Any, **__: Any) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        if step == "owner.toml":
            patch.setattr(Path, "unlink", fails)
        else:
            owner, name = (Ledger, "_write") if step == "ledger" else (shutil, "rmtree")
            patch.setattr(owner, name, fails)
        with pytest.raises(FedaipcError, match="Input/output error"):
            leave(folder)
    assert (folder / "owner.toml").exists()
    leave(folder)
    enrolled(folder, invite, data)
    Ledger(folder / "ledger.jsonl", KeyStore(folder).identity)


def test_the_invite_says_what_a_new_ledger_protects_and_it_stays_so(
    tmp_path: Path, invite: Invite, data: Path
) -> None:
    folder, whole = tmp_path / "pc", invite.model_copy(update={"unit": "client"})
    assert enrolled(tmp_path / "other", invite, data).ledger.unit == "record"
    assert enrolled(folder, whole, data).ledger.unit == "client"
    leave(folder)
    with pytest.raises(AdmissionError, match=r"counts per client permanently"):
        enrolled(folder, invite, data)
    assert enrolled(folder, whole, data).ledger.unit == "client"


def test_a_planted_ledger_is_not_taken_over(tmp_path: Path, invite: Invite, data: Path) -> None:
    """With a budget of 100000 it would allow everything."""
    folder, stranger = tmp_path / "pc", SigningKey()
    folder.mkdir()
    terms: dict[str, Any] = {"lifetime_epsilon": 100_000.0, "delta": 1e-5, "filter_kind": 4.0}
    Ledger.create(folder / "ledger.jsonl", stranger, **terms)
    with pytest.raises(
        AdmissionError, match=r"nothing shows who its owner is: enroll in a new folder"
    ):
        enrolled(folder, invite, data)
    other = tmp_path / "left"
    enrolled(other, invite, data)
    leave(other)
    shutil.copy(folder / "ledger.jsonl", other)
    with pytest.raises(LedgerError, match="another key than this PC's"):
        enrolled(other, invite, data)


def test_a_kept_budget_above_the_advice_must_be_asked_for(
    tmp_path: Path, invite: Invite, data: Path
) -> None:
    folder = tmp_path / "pc"
    enrolled(folder, invite, data, lifetime_epsilon=20.0)
    leave(folder)
    with pytest.raises(AdmissionError, match="epsilon 20 for life, and the invite advises 8"):
        enrolled(folder, invite, data)
    found = enrolled(folder, invite, data, lifetime_epsilon=20.0)
    assert found.ledger.lifetime_epsilon == 20.0


def test_a_move_that_was_cut_off_leaves_no_folder_to_enrol_in(
    tmp_path: Path, invite: Invite, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the file and the folder would each have the whole budget."""
    folder = tmp_path / "pc"
    enrolled(folder, invite, data)

    def fails(self: Path, missing_ok: bool = False) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", fails)
        with pytest.raises(AdmissionError):
            move_out(folder, tmp_path / "file.pc")
    assert not (folder / "ledger.jsonl").exists()
    with pytest.raises(AdmissionError, match="moved to another machine"):
        enrolled(folder, invite, data)


@pytest.mark.parametrize("step", ["identity", "node.key", "owner.toml", "successor.key"])
def test_an_enrolment_that_was_cut_off_can_be_done_again(
    tmp_path: Path, invite: Invite, data: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    folder = tmp_path / "pc"
    enrolled(folder, invite, data)
    leave(folder)

    def fails(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    real = Path.replace
    with monkeypatch.context() as patch:
        if step == "successor.key":
            patch.setattr(Path, "unlink", fails)
        else:
            name = "keys" if step == "identity" else step
            patch.setattr(
                Path, "replace",
                lambda self, to: fails() if Path(to) == folder / name else real(self, to),
            )  # fmt: skip
        with pytest.raises(AdmissionError, match="No space left"):
            enrolled(folder, invite, data)
    if step == "successor.key":  # a PC already; it must not leave with the key that it has
        with pytest.raises(AdmissionError, match="enrolled here already"):
            enrolled(folder, invite, data)
        leave(folder)
    assert not (folder / "owner.toml").exists()
    enrolled(folder, invite, data)
    lines = (folder / "ledger.jsonl").read_text().splitlines()
    assert len({json.loads(line)["key"] for line in lines}) == len(lines)
    Ledger(folder / "ledger.jsonl", KeyStore(folder).identity)
    assert len(request_again(folder).reading.records) == 90


def test_a_pc_moves_with_all_it_has_spent(tmp_path: Path, invite: Invite, data: Path) -> None:
    enrolled(tmp_path / "old", invite, data)
    ledger = (tmp_path / "old" / "ledger.jsonl").read_bytes()
    identity = KeyStore(tmp_path / "old").identity.public
    move_out(tmp_path / "old", tmp_path / "file.pc")
    if os.name != "nt":
        assert stat.S_IMODE((tmp_path / "file.pc").stat().st_mode) == 0o600
    with pytest.raises(FedaipcError):  # two copies would spend the budget twice
        Client(tmp_path / "old")
    for again in (request_again, lambda folder: enrolled(folder, invite, data)):
        with pytest.raises(AdmissionError, match="moved to another machine"):
            again(tmp_path / "old")
    move_in(tmp_path / "file.pc", tmp_path / "new")
    assert Client(tmp_path / "new").key_store.identity.public == identity
    assert (tmp_path / "new" / "ledger.jsonl").read_bytes() == ledger
    with pytest.raises(AdmissionError, match="not empty"):
        move_in(tmp_path / "file.pc", tmp_path / "new")
    with pytest.raises(AdmissionError, match="no PC"):
        move_out(tmp_path / "old", tmp_path / "again.pc")


@pytest.mark.parametrize("kind", ["no zip", "other files", "outside", "damaged ledger", "cut"])
def test_a_file_that_is_no_moved_pc_is_refused(
    tmp_path: Path, invite: Invite, data: Path, kind: str
) -> None:
    enrolled(tmp_path / "old", invite, data)
    file = tmp_path / "file.pc"
    move_out(tmp_path / "old", file)
    if kind == "no zip":
        file.write_bytes(b"hello")
    elif kind == "cut":
        file.write_bytes(file.read_bytes()[:-200])
    else:
        with zipfile.ZipFile(file) as archive:
            content = {name: archive.read(name) for name in archive.namelist()}
        if kind == "other files":
            del content["ledger.jsonl"]
        elif kind == "outside":
            content["../evil"] = b"x"
        else:
            content["ledger.jsonl"] = b"{}\n"
        with zipfile.ZipFile(file, "w") as archive:
            for name, part in content.items():
                archive.writestr(name, part)
    with pytest.raises(FedaipcError):
        move_in(file, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "evil").exists()


def test_what_is_no_file_of_move_out_is_refused_in_words(tmp_path: Path) -> None:
    file = tmp_path / "file.pc"
    with pytest.raises(AdmissionError, match=r"file\.pc: no such file; give the one") as caught:
        move_in(file, tmp_path / "new")
    assert "Errno" not in str(caught.value)
    file.write_bytes(b"PK no archive")
    with pytest.raises(
        AdmissionError, match="is damaged, or not what `fedaipc client move-out` writes"
    ):
        move_in(file, tmp_path / "new")


def test_a_moved_file_with_a_byte_changed_is_refused_or_whole(
    tmp_path: Path, invite: Invite, data: Path
) -> None:
    enrolled(tmp_path / "old", invite, data)
    file = tmp_path / "file.pc"
    move_out(tmp_path / "old", file)
    content = file.read_bytes()
    for place in range(0, 200, 3):  # the first file's head and compressed text
        file.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
        with suppress(FedaipcError):
            move_in(file, tmp_path / f"new{place}")


@pytest.mark.parametrize("step", ["the file cannot be deleted", "the folder cannot appear"])
def test_a_move_that_fails_leaves_the_file_and_no_second_pc(
    tmp_path: Path, invite: Invite, data: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Neither a PC with two budgets, nor one whose ledger is gone."""
    enrolled(tmp_path / "old", invite, data)
    file = tmp_path / "file.pc"
    move_out(tmp_path / "old", file)
    before = file.read_bytes()

    def fails(*_: Any) -> None:
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patch:
        if step == "the file cannot be deleted":
            patch.setattr(Path, "rename", fails)
        else:
            real = Path.replace
            patch.setattr(
                Path, "replace",
                lambda self, to: fails() if Path(to) == tmp_path / "new" else real(self, to),
            )  # fmt: skip
        with pytest.raises(AdmissionError):
            move_in(file, tmp_path / "new")
    assert file.read_bytes() == before
    assert not (tmp_path / "new").exists()
    move_in(file, tmp_path / "new")
    assert not list(tmp_path.glob("file.pc*"))
    assert Ledger(tmp_path / "new" / "ledger.jsonl").lifetime_epsilon == 8.0
