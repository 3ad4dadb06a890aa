"""Times exchanges of one small message with every PC."""

import json
import time
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Write seconds of each exchange to the file `out`."""
    pcs, seconds = int(context.run_config["pcs"]), []
    while len(nodes := list(grid.get_node_ids())) < pcs:
        time.sleep(1)
    for _ in range(int(context.run_config["exchanges"])):
        started = time.monotonic()
        replies = grid.send_and_receive(
            [Message(RecordDict({"ask": ConfigRecord({"x": 1})}), node, "query") for node in nodes]
        )
        if sum(not reply.has_error() for reply in replies) != pcs:
            raise RuntimeError("a PC did not answer")
        seconds.append(time.monotonic() - started)
    Path(str(context.run_config["out"])).write_text(json.dumps(seconds))
