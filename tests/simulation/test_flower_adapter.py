"""The two engines that drive the apps on one machine: in this process, and on Flower's runtime."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.task_identity import TaskIdentity

from fedaipc.errors import EngineError, MissingExtra
from fedaipc.simulation import flower_engine, processes
from fedaipc.simulation.flower_adapter import (
    CLIENT_CRASHED,
    CLIENT_RAISED,
    MESSAGE_UNKNOWN,
    InProcessGrid,
    ensure_message_identity,
    run_server_app,
)
from fedaipc.simulation.flower_engine import run_on_flower_simulation

RUN_CONFIG: dict[str, str | float | bool] = {"rate": 0.5, "name": "a b", "flag": True}
app = ClientApp()
calls: list[int] = []


@app.train("double")
def double(message: Any, context: Any) -> Message:
    """Count the calls of this PC in its state; return twice the vector."""
    calls.append(int(str(context.node_config["partition-id"])))
    count = int(context.state["seen"]["n"]) + 1 if "seen" in context.state else 1
    context.state["seen"] = ConfigRecord({"n": count})
    vector = message.content["w"]["v"].numpy()
    vector *= 2  # in place: must not reach the server's vector
    facts = ConfigRecord({"n": count, "pc": context.node_config["partition-id"]})
    arrays = ArrayRecord({"v": Array(vector)})
    return Message(RecordDict({"w": arrays, "facts": facts}), reply_to=message)


@app.query("vandalise")
def vandalise(message: Any, context: Context) -> Message:
    message.content["w"]["v"].data = b""
    message.content["w"]["v"] = Array(np.zeros(1, np.float32))
    message.content["c"]["list"].append(99)
    message.content["c"]["x"] = 99
    del message.content["c"]
    context.run_config["rate"] = 99.0
    return Message(RecordDict(), reply_to=message)


@app.query("configs")
def configs(message: Message, context: Context) -> Message:
    seen: Any = {"node": json.dumps(context.node_config), "run": json.dumps(context.run_config)}
    return Message(RecordDict({"c": ConfigRecord(seen)}), reply_to=message)


@app.query("fail")
def fail(message: Message, context: Context) -> Any:
    """Change the state, then fail in the way that the message asks for."""
    context.state["seen"] = ConfigRecord({"n": 1000})
    how = message.content["c"]["how"]
    if how == "raise":
        raise ValueError("a secret of this PC")
    if how == "exit":
        raise SystemExit(3)
    if how == "interrupt":
        raise KeyboardInterrupt
    if how == "code":
        return Message(Error(code=1234), reply_to=message)
    return None


def make_grid(pcs: int = 3) -> InProcessGrid:
    calls.clear()
    return InProcessGrid(app, [{}] * pcs, RUN_CONFIG)


def vectors(values: object = (1, 2)) -> RecordDict:
    return RecordDict({"w": ArrayRecord({"v": Array(np.array(values, np.float32))})})


def failing(grid: InProcessGrid, how: str) -> Message:
    content = RecordDict({"c": ConfigRecord({"how": how})})
    (reply,) = grid.send_and_receive([Message(content, grid.get_node_ids()[0], "query.fail")])
    return reply


def test_message_can_be_made_without_knowing_about_identities() -> None:
    ensure_message_identity()
    ensure_message_identity()
    assert Message(RecordDict(), 7, "train.x").metadata.dst_node_id == 7


def test_identity_that_flower_has_set_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TaskIdentity, "_run_id", 42)
    ensure_message_identity()
    assert TaskIdentity.run_id == 42
    assert make_grid().run.run_id == 42


def test_clients_run_one_by_one_and_only_when_pulled() -> None:
    grid = make_grid()
    nodes = grid.get_node_ids()
    ids = grid.push_messages([Message(vectors(), node, "train.double") for node in nodes])
    assert calls == []
    for i, (message_id, node) in enumerate(zip(ids, nodes, strict=True)):
        (reply,) = grid.pull_messages(ids[i:])
        assert calls == list(range(i + 1))
        assert reply.metadata.reply_to_message_id == message_id
        assert reply.metadata.src_node_id == node
        assert reply.metadata.message_type == "train.double"
        np.testing.assert_array_equal(reply.content["w"]["v"].numpy(), np.array([2, 4], np.float32))
    assert list(grid.pull_messages([])) == []


def test_pull_runs_only_what_was_asked_for() -> None:
    grid = make_grid()
    ids = grid.push_messages([Message(vectors(), n, "train.double") for n in grid.get_node_ids()])
    (reply,) = grid.pull_messages([ids[2]])
    assert reply.content["facts"]["pc"] == 2
    assert calls == [2]


def test_each_node_keeps_its_own_context() -> None:
    grid = make_grid(2)
    first, second = grid.get_node_ids()
    order = [first, second, first, first]
    replies = grid.send_and_receive([Message(vectors(), n, "train.double") for n in order])
    seen = [(r.content["facts"]["pc"], r.content["facts"]["n"]) for r in replies]
    assert seen == [(0, 1), (1, 1), (0, 2), (0, 3)]


def test_client_sees_node_config_and_run_config() -> None:
    grid = InProcessGrid(app, [{"site": "x"}, {"partition-id": 7}], RUN_CONFIG)
    replies = grid.send_and_receive(
        [Message(RecordDict(), node, "query.configs") for node in grid.get_node_ids()]
    )
    nodes = [json.loads(str(r.content["c"]["node"])) for r in replies]
    assert nodes == [
        {"partition-id": 0, "num-partitions": 2, "site": "x"},
        {"partition-id": 7, "num-partitions": 2},
    ]
    assert json.loads(str(replies[0].content["c"]["run"])) == RUN_CONFIG


def test_client_cannot_reach_the_servers_or_anothers_records() -> None:
    grid = make_grid(2)
    content = vectors()
    content["c"] = ConfigRecord({"list": [1, 2], "x": 1})
    before = content["w"]["v"].data
    first, second = grid.get_node_ids()
    actions = [(first, "query.vandalise"), (first, "train.double"), (second, "train.double")]
    ids = grid.push_messages([Message(content, node, action) for node, action in actions])
    for message_id in ids:
        (reply,) = grid.pull_messages([message_id])
        assert reply.has_content()
    np.testing.assert_array_equal(reply.content["w"]["v"].numpy(), np.array([2, 4], np.float32))
    assert content["w"]["v"].data is before
    assert content["c"] == ConfigRecord({"list": [1, 2], "x": 1})
    (reply,) = grid.send_and_receive([Message(RecordDict(), first, "query.configs")])
    assert json.loads(str(reply.content["c"]["run"])) == RUN_CONFIG


def test_array_bytes_are_shared_not_copied() -> None:
    grid = make_grid(1)
    content = vectors()
    seen: list[bytes] = []
    grid._client_app = lambda message, _: (
        seen.append(message.content["w"]["v"].data),
        Message(message.content, reply_to=message),
    )[1]
    (reply,) = grid.send_and_receive([Message(content, grid.get_node_ids()[0], "train")])
    assert seen[0] is content["w"]["v"].data
    assert reply.content["w"]["v"].data is seen[0]
    assert reply.content["w"]["v"] is not content["w"]["v"]


def test_later_change_of_a_pushed_message_is_not_sent() -> None:
    grid = make_grid(1)
    content: Any = vectors()
    ids = grid.push_messages([Message(content, grid.get_node_ids()[0], "train.double")])
    content["w"]["v"] = Array(np.array([100, 100], np.float32))
    (reply,) = grid.pull_messages(ids)
    np.testing.assert_array_equal(reply.content["w"]["v"].numpy(), np.array([2, 4], np.float32))


def test_values_come_out_as_after_a_real_transport() -> None:
    grid = make_grid(1)
    grid._client_app = lambda message, _: Message(message.content, reply_to=message)
    sent: Any = {
        "f": np.float64(1.5),
        "t": True,
        "u": 2**64 - 1,
        "b": b"\x00\xff",
        "e": [],
        "l": ["a"],
    }
    content = RecordDict({"c": ConfigRecord(sent), "m": MetricRecord({"x": [1.5], "n": 3})})
    (reply,) = grid.send_and_receive([Message(content, grid.get_node_ids()[0], "query")])
    assert dict(reply.content["c"]) == sent
    assert dict(reply.content["m"]) == {"x": [1.5], "n": 3}
    assert type(reply.content["c"]["f"]) is float
    assert reply.content["c"]["t"] is True
    too_big = RecordDict({"c": ConfigRecord({"u": 2**64})})
    with pytest.raises(ValueError, match="out of range"):
        grid.push_messages([Message(too_big, grid.get_node_ids()[0], "query")])


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ("raise", CLIENT_RAISED),
        ("nothing", CLIENT_RAISED),
        ("exit", CLIENT_CRASHED),
        ("code", 1234),
    ],
)
def test_failing_client_gives_a_code_without_text(how: str, code: int) -> None:
    reply = failing(make_grid(), how)
    assert reply.has_error()
    assert not reply.has_content()
    assert reply.error.code == code
    assert reply.error.reason is None


def test_exception_text_reaches_neither_reply_nor_log(caplog: pytest.LogCaptureFixture) -> None:
    reply = failing(make_grid(), "raise")
    assert "secret" not in repr(reply)
    assert "secret" not in caplog.text
    assert "ValueError" in caplog.text


def test_unknown_action_gives_a_code() -> None:
    grid = make_grid()
    message = Message(RecordDict(), grid.get_node_ids()[0], "query.nobody_knows")
    (reply,) = grid.send_and_receive([message])
    assert reply.error.code == CLIENT_RAISED


def test_failed_client_keeps_its_old_state() -> None:
    grid = make_grid(1)
    (node,) = grid.get_node_ids()
    grid.send_and_receive([Message(vectors(), node, "train.double")])
    failing(grid, "raise")
    (reply,) = grid.send_and_receive([Message(vectors(), node, "train.double")])
    assert reply.content["facts"]["n"] == 2


def test_ctrl_c_in_a_client_ends_the_run() -> None:
    with pytest.raises(KeyboardInterrupt):
        failing(make_grid(), "interrupt")


def test_unknown_node_gets_an_empty_id() -> None:
    grid = make_grid(1)
    known = Message(vectors(), grid.get_node_ids()[0], "train.double")
    assert grid.push_messages([Message(RecordDict(), 12345, "query"), known]) == ["", "message-1"]
    assert grid.send_and_receive([Message(RecordDict(), 12345, "query")]) == []


def test_reply_is_given_once() -> None:
    grid = make_grid(1)
    ids = grid.push_messages([Message(vectors(), grid.get_node_ids()[0], "train.double")])
    assert not next(iter(grid.pull_messages(ids))).has_error()
    (again,) = grid.pull_messages(ids)
    assert again.error.code == MESSAGE_UNKNOWN
    assert again.metadata.reply_to_message_id == ids[0]


def test_timeout_stops_between_clients() -> None:
    grid = make_grid()
    messages = [Message(vectors(), n, "train.double") for n in grid.get_node_ids()]
    assert grid.send_and_receive(messages, timeout=0) == []
    assert calls == []


def test_grid_without_nodes_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one node"):
        InProcessGrid(app, [], {})


def test_the_server_app_gets_its_context_and_grid() -> None:
    server = ServerApp()
    seen: dict[str, Any] = {}

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        seen.update(nodes=len(list(grid.get_node_ids())), config=dict(context.run_config))

    run_server_app(server, InProcessGrid(app, [{}, {}], RUN_CONFIG), RUN_CONFIG)
    assert seen == {"nodes": 2, "config": RUN_CONFIG}


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_a_missing_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(EngineError, match=rf"superlink is missing: pip .*=={version('flwr')}$"):
        run_on_flower_simulation(run_config={}, num_pcs=1)


def test_missing_ray_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"pip install '\.\[flower\]'"):
        run_on_flower_simulation(run_config={}, num_pcs=1)


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
@pytest.mark.parametrize(("config", "pcs"), [({"a": [1]}, 1), ({}, 0)])
def test_bad_settings_start_nothing(config: dict[str, Any], pcs: int) -> None:
    before = leftovers()
    with pytest.raises(EngineError):
        run_on_flower_simulation(run_config=config, num_pcs=pcs)
    assert leftovers() == before


PAIR = """
import json, os, time
import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

client = ClientApp()
server = ServerApp()

@client.train("double")
def double(message, context):
    vector = message.content["w"]["v"].numpy() * 2
    facts = ConfigRecord({"pc": context.node_config["partition-id"], "pid": os.getpid()})
    reply = RecordDict({"w": ArrayRecord({"v": Array(vector)}), "facts": facts})
    return Message(reply, reply_to=message)

@server.main()
def main(grid, context):
    config = context.run_config
    if config["break"]:
        raise RuntimeError("the server app broke on purpose")
    while len(nodes := list(grid.get_node_ids())) < config["pcs"]:
        time.sleep(0.05)
    content = RecordDict({"w": ArrayRecord({"v": Array(np.array([1, 2], np.float32))})})
    waiting = set(grid.push_messages([Message(content, n, "train.double") for n in nodes]))
    replies = []
    while waiting:
        for reply in grid.pull_messages(waiting):
            waiting.discard(reply.metadata.reply_to_message_id)
            vector = reply.content["w"]["v"].numpy().tolist()
            replies.append([reply.content["facts"]["pc"], reply.content["facts"]["pid"], vector])
        time.sleep(0.05)
    print("server is done")
    with open(config["out"], "w") as file:
        json.dump({"replies": sorted(replies), "text": config["text"]}, file)
"""
TEXT = """it's "quoted" = é, 1"""


def leftovers() -> tuple[int, Counter[str]]:
    children = psutil.Process().children(recursive=True)
    folders = {p.name for d in {tempfile.gettempdir(), "/tmp"} for p in Path(d).glob("fedaipc-*")}
    return len(children), Counter(folders)


def run_pair(folder: Path, *, broken: bool = False, lines: list[str] | None = None) -> Path:
    (folder / "flower_pair_for_test.py").write_text(PAIR, encoding="utf-8")
    out = folder / "out.json"
    run = run_on_flower_simulation(
        run_config={"out": str(out), "pcs": 3, "break": broken, "text": TEXT},
        num_pcs=3,
        server_app="flower_pair_for_test:server",
        client_app="flower_pair_for_test:client",
        num_cpus=2,
        import_paths=[folder],
        on_log=(lambda _: None) if lines is None else lines.append,
        timeout=300,
    )
    assert run.status == "finished:completed"
    assert run.run_id > 0
    return out


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_flower_simulation_runs_the_pair_and_leaves_nothing(tmp_path: Path) -> None:
    before = leftovers()
    lines: list[str] = []
    result = json.loads(run_pair(tmp_path, lines=lines).read_text("utf-8"))
    assert [[pc, vector] for pc, _, vector in result["replies"]] == [
        [pc, [2.0, 4.0]] for pc in range(3)
    ]
    pids = {pid for _, pid, _ in result["replies"]}
    assert os.getpid() not in pids
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert result["text"] == TEXT
    assert "server is done" in lines
    assert leftovers() == before
    assert not list(psutil_with_mark())


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_broken_server_app_is_an_engine_error_and_leaves_nothing(tmp_path: Path) -> None:
    before = leftovers()
    with pytest.raises(EngineError, match=r"finished:failed.*broke on purpose") as caught:
        run_pair(tmp_path, broken=True)
    assert "\n" not in str(caught.value)
    assert "RuntimeError: the server app broke on purpose" in caught.value.__notes__[0]
    assert leftovers() == before
    assert not list(psutil_with_mark())


HANGING = """
import sys, time
from pathlib import Path
from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

client = ClientApp()
server = ServerApp()

@client.query("hang")
def hang(message, context):
    time.sleep(600)

@server.main()
def main(grid, context):
    print("about to hang", flush=True)
    while not (nodes := list(grid.get_node_ids())):
        time.sleep(0.05)
    grid.send_and_receive([Message(RecordDict(), node, "query.hang") for node in nodes])

if __name__ == "__main__":
    from fedaipc.simulation.flower_engine import run_on_flower_simulation
    run_on_flower_simulation(
        run_config={},
        num_pcs=1,
        server_app="flower_hanging_for_test:server",
        client_app="flower_hanging_for_test:client",
        num_cpus=1,
        import_paths=[Path(__file__).parent],
        on_log=lambda line: print(line, flush=True),
    )
"""


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM that can be caught")
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_sigterm_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    before = leftovers()
    script = tmp_path / "flower_hanging_for_test.py"
    script.write_text(HANGING, encoding="utf-8")
    source = Path(flower_engine.__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": str(source)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert any("about to hang" in line for line in process.stdout)
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        process.stdout.read()
        assert process.wait(60) == 128 + signal.SIGTERM
    assert len(family) >= 3
    assert not any(processes.alive(p) for p in family)
    assert leftovers() == before
    assert not list(psutil_with_mark())


def psutil_with_mark() -> list[psutil.Process]:
    marked = []
    for process in psutil.process_iter():
        try:
            if processes.JOB_MARK in process.environ() and processes.alive(process):
                marked.append(process)
        except (psutil.Error, OSError):
            continue
    return marked
