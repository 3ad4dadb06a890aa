"""The PC as a Flower client app: decode, call, encode.

Where a PC's folder is comes from the PC's own side (`pc-folder` in its node config). Only in a
simulation, where the runtime numbers the nodes, it follows from the run config.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

from fedaipc.errors import BudgetExhausted, PrivacyError, RoundError
from fedaipc.federation.messages import (
    EXHAUSTED,
    REFUSED,
    Description,
    TrainRequest,
    encode_refusal,
    encode_update,
)
from fedaipc.federation.pc import Pc, SimulatedDropOut

if TYPE_CHECKING:
    from collections.abc import Callable

    from flwr.app import RecordDict

PC_FAILED = 100  # the one code for whatever goes wrong: which error it was may depend on data

app = ClientApp()
_log = logging.getLogger(__name__)


@app.query("describe")
def describe(message: Message, context: Context) -> Message:
    """Public name and size class."""
    return _reply(message, lambda: _describe(_pc(context)))


@app.train("round")
def train(message: Message, context: Context) -> Message:
    """One round's update; a refusal on public grounds; else nothing but an error code."""
    return _reply(message, lambda: _train(_pc(context), TrainRequest.decode(message.content)))


def _describe(pc: Pc) -> RecordDict:
    return Description(pc.owner.name, pc.owner.size_class).encode()


def _train(pc: Pc, request: TrainRequest) -> RecordDict:
    try:
        classifier = pc.admit(request)
    except BudgetExhausted:
        return encode_refusal(EXHAUSTED)
    except (PrivacyError, RoundError) as error:
        _log.warning("%s refuses: %s", pc.owner.name, error)
        return encode_refusal(REFUSED)
    return encode_update(pc.train(request, classifier))


def _reply(message: Message, answer: Callable[[], RecordDict]) -> Message:
    """The answer, or one fixed code: Flower would send an exception's text to the server."""
    try:
        return Message(answer(), reply_to=message)
    except SimulatedDropOut:
        pass
    except (Exception, SystemExit):  # noqa: BLE001 - nothing of it may leave the PC
        # Not into the log either, which in a simulation is the coordinator's.
        _log.warning("a PC could not take part")
    return Message(Error(code=PC_FAILED, reason=""), reply_to=message)


def _pc(context: Context) -> Pc:
    own = context.node_config.get("pc-folder")
    if own is not None:
        return Pc(Path(str(own)))
    number = int(str(context.node_config["partition-id"]))
    return Pc(pc_folder(Path(str(context.run_config["pc-state"])), number))


def pc_folder(state: Path, number: int) -> Path:
    """Folder of the simulated PC `number`."""
    return state / f"pc-{number:04d}"
