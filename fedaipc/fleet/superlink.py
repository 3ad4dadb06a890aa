"""Flower's SuperLink on loopback, in plain HTTP: the front does TLS.

Started by `python -m fedaipc.fleet.superlink FOLDER PORT`. Flower's own command refuses node
authentication without TLS where it parses its arguments; the app itself does not.
"""

from __future__ import annotations

import gc
import logging
import sqlite3
import sys
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from fedaipc import parent_watch
from fedaipc.fleet.admitted import Admitted
from fedaipc.protocol.server_folder import STATE_FOLDER
from fedaipc.surroundings import inherited
from fedaipc.terminal import printable

HOST = "127.0.0.1"
SECRET_FILE, DATABASE_FILE = "superexec.secret", "state.db"
UPLOAD_FILE = "largest_upload"  # bytes of the largest answer that the current run can have


def environment(state: Path, *, proxies: bool = False) -> dict[str, str]:
    """For every process that loads Flower: no telemetry, nothing outside `state`."""
    return {
        **inherited(proxies=proxies),
        "FLWR_HOME": str(state),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "MALLOC_MMAP_THRESHOLD_": "1000000",  # glibc: give the memory of vectors back
    }


def run(folder: Path, port: int) -> None:
    """Serve until the process is told to stop. `folder` is the server's."""
    import uvicorn
    from flwr.common.constant import ISOLATION_MODE_PROCESS, TRANSPORT_TYPE_GRPC_RERE
    from flwr.superlink.auth_plugin import NoOpControlAuthnPlugin
    from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
    from flwr.superlink.config_loader import SuperLinkLifespanConfig
    from flwr.superlink.main import create_app

    from fedaipc.fleet.guard import Uploads, guarded

    _tune()
    _escape_logs()
    state = folder / STATE_FOLDER
    _shrink(state / DATABASE_FILE)
    secret = (state / SECRET_FILE).read_bytes()
    config = SuperLinkLifespanConfig(
        control_address=f"{HOST}:0",
        health_server_address=None,
        host=HOST,
        port=port,
        insecure=True,
        certificates=None,
        superexec_auth_secret=secret,
        authn_plugin=NoOpControlAuthnPlugin(),
        event_log_plugin=None,
        fleet_event_log_plugin=None,
        enable_event_log=False,
        artifact_provider=None,
        enable_supernode_auth=True,  # closes the fleet's own calls to register and unregister
        fleet_api_type=TRANSPORT_TYPE_GRPC_RERE,
        fleet_api_address=None,
        simulation=False,
        ssl_ca_certfile=None,
        ssl_certfile=None,
        ssl_keyfile=None,
        database=str(state / DATABASE_FILE),
        isolation=ISOLATION_MODE_PROCESS,
        runtime_dependency_install=False,
    )
    app: Any = create_app(config, SuperLinkLifespan)
    gc.collect()
    gc.freeze()  # so that collecting looks at the objects of requests alone
    uvicorn.run(
        guarded(app, secret, Admitted(folder), Uploads(state / UPLOAD_FILE)),
        host=HOST,
        port=port,
        workers=1,
        access_log=False,
        log_level="warning",
        timeout_graceful_shutdown=2,
    )


def _escape_logs() -> None:
    """Flower logs what PCs send; in the log it must be plain text."""
    before = logging.getLogRecordFactory()

    def factory(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = before(*args, **kwargs)
        with suppress(TypeError, ValueError):  # a wrong format is logging's own to complain about
            text = record.getMessage()
            record.msg, record.args = printable(text), ()
        return record

    logging.setLogRecordFactory(factory)


def _shrink(database: Path) -> None:
    """Free the disk space of deleted messages."""
    if not database.is_file():
        return
    with suppress(sqlite3.Error), closing(sqlite3.connect(database)) as connection:
        pages, free = (
            connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count")
        )
        if free > pages // 2:
            connection.execute("VACUUM")


def _tune() -> None:
    """Less memory and time, by values that Flower keeps in variables."""
    from flwr.supercore import sql_mixin as untyped
    from flwr.supercore.corestate.sql_corestate import SqlCoreState

    # 64 MB of page cache and 256 MB of mapping for each connection are too much here.
    sql_mixin: Any = untyped
    less = {"cache_size": "-4000", "mmap_size": "0"}
    sql_mixin.SQLITE_PRAGMAS = (
        *((name, less.get(name, value)) for name, value in sql_mixin.SQLITE_PRAGMAS),
        ("journal_size_limit", "16000000"),
    )
    clean, last = SqlCoreState._cleanup_expired_task_tokens, [0.0]  # noqa: SLF001

    def sometimes(self: SqlCoreState) -> None:
        """Two writes to the disk on each call; once in a second is enough."""
        if time.monotonic() - last[0] > 1:
            last[0] = time.monotonic()
            clean(self)

    SqlCoreState._cleanup_expired_task_tokens = sometimes  # type: ignore[method-assign]  # noqa: SLF001


if __name__ == "__main__":
    parent_watch.hold()
    run(Path(sys.argv[1]), int(sys.argv[2]))
