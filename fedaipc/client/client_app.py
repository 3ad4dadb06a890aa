"""The PC as a Flower client app: decode, call, encode.

Where a PC's folder is comes from the PC's own side (`pc-folder` in its node config). Only in a
simulation, where the runtime numbers the nodes, it follows from the run config.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

from fedaipc.client import disclosure_log
from fedaipc.client.client import Client, SimulatedDropOut
from fedaipc.errors import (
    BudgetExhausted,
    EncodingError,
    FedaipcError,
    LedgerError,
    ModelError,
    PrivacyError,
    RoundError,
    SecAggError,
)
from fedaipc.files import unflushed
from fedaipc.privacy.ledger import LEDGER_FILE
from fedaipc.protocol.messages import (
    EXHAUSTED,
    REFUSED,
    UNABLE,
    MaskRequest,
    MemberRequest,
    Readiness,
    RoundRequest,
    SetupRequest,
    asked_for,
    contents,
    encode_answer,
    encode_refusal,
    encode_update,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from flwr.app import RecordDict

PC_FAILED = 100  # the one code for every failure: which error it was may depend on data

# None of them depends on data.
_PUBLIC = (PrivacyError, SecAggError, EncodingError, RoundError, ModelError)
_HOUR = 3600.0
_MAX_REMEMBERED = 1000
_free_answers: deque[float] = deque(maxlen=2000)  # when they left, in this process
_answered: dict[tuple[str, str | None, int | None], None] = {}  # asking again costs nothing either

app = ClientApp()
_log = logging.getLogger(__name__)


@app.query("setup")
def setup(message: Message, context: Context) -> Message:
    """Public name and key bundle."""
    return _reply("setup", message, context, lambda pc: _setup(pc, message))


@app.query("ready")
def ready(message: Message, context: Context) -> Message:
    """Whether this PC takes part in a round, and its shares, before anybody is charged."""
    return _reply("ready", message, context, lambda pc: _ready(pc, message))


@app.train("mask")
def mask(message: Message, context: Context) -> Message:
    """One round's sealed update, or a refusal on public grounds, or only an error code."""
    return _reply("mask", message, context, lambda pc: _mask(pc, message))


@app.query("agree")
def agree(message: Message, context: Context) -> Message:
    """What a member signs about the set of updates to sum."""
    return _reply("agree", message, context, lambda pc: _member(pc, message, unmask=False))


@app.query("unmask")
def unmask(message: Message, context: Context) -> Message:
    """A member's shares for the agreed set."""
    return _reply("unmask", message, context, lambda pc: _member(pc, message, unmask=True))


def _setup(pc: Client, message: Message) -> RecordDict:
    request = SetupRequest.decode(message.content)
    with _told(pc):
        return pc.setup(request).encode()


def _member(pc: Client, message: Message, *, unmask: bool) -> RecordDict:
    with _told(pc):
        request = MemberRequest.decode(message.content)
        return encode_answer(pc.unmask(request) if unmask else pc.agree(request))


@contextmanager
def _told(pc: Client) -> Iterator[None]:
    """Log why a stage that sees no data went wrong."""
    try:
        yield
    except (SecAggError, EncodingError, RoundError) as error:
        _log.warning("%s does not answer: %s", pc.owner.name, error)
        raise


def _ready(pc: Client, message: Message) -> RecordDict:
    from fedaipc.client.trainer import Trainer  # loads torch, which later stages do not need

    trainer = Trainer(pc, RoundRequest.decode(message.content))
    try:
        key_shares = trainer.ready()
    except _PUBLIC as error:
        return Readiness(_refusal(pc, error), trainer.charged).encode()
    return Readiness(None, trainer.charged, key_shares).encode()


def _mask(pc: Client, message: Message) -> RecordDict:
    request = MaskRequest.decode(message.content)
    from fedaipc.client.trainer import Trainer

    trainer = Trainer(pc, request)
    try:
        admitted = trainer.admit(request.round_keys, request.vector)
    except _PUBLIC as error:
        return encode_refusal(_refusal(pc, error))
    return encode_update(trainer.train(admitted))


def _refusal(pc: Client, error: FedaipcError) -> str:
    """The code word that the coordinator gets; the explanation stays in this PC's log.

    What is refused permanently is not asked again, so that the others lose nothing.
    """
    if isinstance(error, BudgetExhausted):
        _log.warning("%s: %s", pc.owner.name, error)
        return EXHAUSTED
    _log.warning("%s does not take part: %s", pc.owner.name, error)
    passes = LedgerError | SecAggError | EncodingError  # a lock, a full disk, keys of another epoch
    return UNABLE if isinstance(error, passes) else REFUSED


def _reply(
    stage: str, message: Message, context: Context, answer: Callable[[Client], RecordDict]
) -> Message:
    """The answer, or one fixed code: Flower would send an exception's text to the server.

    A PC at a real server logs each answer before it leaves.
    """
    try:
        pc = _pc(context)
        simulated = pc.owner.server is None
        with unflushed() if simulated else nullcontext():
            records = answer(pc)
        if not simulated:
            _note(pc, stage, message, records)
        return Message(records, reply_to=message)
    except SimulatedDropOut:
        pass
    except (Exception, SystemExit):  # noqa: BLE001 - nothing of it may leave the PC
        # Not into the log either, which in a simulation is the coordinator's.
        _log.warning("a PC could not take part")
    return Message(Error(code=PC_FAILED, reason=""), reply_to=message)


def _note(pc: Client, stage: str, message: Message, records: RecordDict) -> None:
    epsilon = None
    if stage == "mask":
        from fedaipc.privacy.ledger import Ledger  # loads accountants, only for this stage

        ledger = Ledger(pc.folder / LEDGER_FILE)
        epsilon = None if ledger.unprotected else ledger.spent_epsilon()
    refused = "refusal" in records or "refusal" in records.get("ready", ())
    about = asked_for(message.content)
    again = stage != "mask" and (stage, *about) in _answered  # an update is charged each time
    if refused or stage in {"setup", "ready"} or again:
        _count_free()
    elif stage == "mask" and _free_answers:
        _free_answers.pop()  # getting ready for it was useful
    _answered[stage, *about] = None
    if len(_answered) > _MAX_REMEMBERED:
        del _answered[next(iter(_answered))]
    kind = f"{stage}, refused" if refused else stage
    disclosure_log.note(pc.folder, kind, *about, contents(records), epsilon)


def _count_free() -> None:
    """Limit the answers that cost no budget: they must not fill the owner's log."""
    now = time.monotonic()
    if len(_free_answers) == _free_answers.maxlen and now - _free_answers[0] < _HOUR:
        raise RoundError("the server asks too often for what costs no budget")
    _free_answers.append(now)


def _pc(context: Context) -> Client:
    own = context.node_config.get("pc-folder")
    if own is not None:
        return Client(Path(str(own)))
    number = int(str(context.node_config["partition-id"]))
    return Client(pc_folder(Path(str(context.run_config["pc-state"])), number))


def pc_folder(state: Path, number: int) -> Path:
    """Folder of the simulated PC `number`."""
    return state / f"pc-{number:04d}"
