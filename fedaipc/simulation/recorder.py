"""What a curious server sees of a run in this process, recorded on the wire."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedaipc.client.client_app import app as client_app
from fedaipc.protocol.messages import MASK, MaskRequest, decode_update
from fedaipc.secagg.terms import Terms
from fedaipc.secagg.uploads import Upload

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from flwr.app import Context, Message


@dataclass(frozen=True, slots=True, repr=False)
class ObservedUpdate:
    """One update as its server decodes it: the PC's place, the model that it was sent, the answer.

    `update` is the difference to `vector`, both of shape (parameters,). Where the upload is
    `sealed` it is what the masked words would say, read as if they were plain.
    """

    pc: int
    round: int
    vector: npt.NDArray[np.float32]
    update: npt.NDArray[np.float64]
    sealed: bool


class Recorder:
    """Answers for the PCs as their client app does, and keeps what the server receives.

    Of the PCs with a number below `pcs`: an update of a large model takes three times its bytes.
    """

    def __init__(self, pcs: int | None = None) -> None:
        self.updates: list[ObservedUpdate] = []
        self._pcs = pcs

    def __call__(self, message: Message, context: Context) -> Message:
        request = None
        number = int(str(context.node_config["partition-id"]))
        wanted = self._pcs is None or number < self._pcs
        if message.metadata.message_type == MASK and wanted:
            request = MaskRequest.decode(message.content)
        reply = client_app(message, context)
        if request is not None and reply.has_content():
            frame = decode_update(reply.content)
            if isinstance(frame, bytes):
                self._keep(request, frame, number)
        return reply

    def _keep(self, request: MaskRequest, frame: bytes, pc: int) -> None:
        terms = Terms.decode(request.terms)
        content = Upload.decode(frame).vector if terms.sealed else frame
        words = terms.encoding.unpack(content, terms.size)
        weight = terms.weights[0]  # equal where updates are plain: the settings see to that
        update = terms.encoding.decode(words) / weight
        self.updates.append(
            ObservedUpdate(pc, request.round, request.vector.copy(), update, terms.sealed)
        )
