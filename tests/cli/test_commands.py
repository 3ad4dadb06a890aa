"""Every command but `simulate`: help, output for people, output for programs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fedaipc.config import Settings
from tests.support.commands import all_commands, refused
from tests.support.reviews import write_reviews
from tests.support.tiny_models import make_folder

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.commands import Ran

FEW = ("--set", "data.limit=600")
REVIEWS = ("reviews.csv", "--text", "body", "--label", "stars")


def test_the_commands_are_those_that_the_documents_name() -> None:
    assert {" ".join(path) for path in all_commands()} == {
        "simulate", "doctor", "report", "predict", "config show", "config check", "data describe",
        "assets list", "assets fetch", "privacy ledger show", "privacy ledger verify",
        "privacy ledger export", "privacy certificate issue", "privacy certificate verify",
        "privacy plan", "privacy sweep", "privacy audit", "client enroll", "client start",
        "client log", "client leave", "client move-out", "client move-in",
        "federation init", "federation invite", "federation admit", "federation list",
        "federation revoke", "federation renew", "federation base", "federation sign",
        "plan fleet", "server start", "server train", "server status", "server stop",
    }  # fmt: skip


@pytest.mark.parametrize("path", all_commands(), ids=" ".join)
def test_help_says_what_a_command_does_and_gives_an_example(
    fedaipc: Callable[..., Ran], path: tuple[str, ...]
) -> None:
    ran = fedaipc(*path, "--help")
    assert ran.code == 0
    assert f"Example: fedaipc {' '.join(path)}" in ran.out
    assert str(all_commands()[path].help).splitlines()[0] in " ".join(ran.out.split())


@pytest.mark.parametrize("path", all_commands(), ids=" ".join)
def test_every_option_is_explained(path: tuple[str, ...]) -> None:
    options = [one for one in all_commands()[path].params if one.param_type_name == "option"]
    assert [one.name for one in options if not one.help] == []


def test_every_argument_is_explained() -> None:
    bare = [
        (path, one.name)
        for path, command in all_commands().items()
        for one in command.params
        if one.param_type_name == "argument" and not one.help
    ]
    assert bare == []


def test_without_a_command_the_help_appears(fedaipc: Callable[..., Ran]) -> None:
    ran = fedaipc()
    assert "simulate" in ran.out + ran.err
    assert "Traceback" not in ran.err


def test_a_real_process_gives_version_line_and_exit_code(tmp_path: Path) -> None:
    def call(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "fedaipc.cli.main", *words],
            capture_output=True, text=True, check=False, cwd=tmp_path,
            env={"PYTHONPATH": str(Path(__file__).parents[2])},
        )  # fmt: skip

    shown = call("--version")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.startswith("fedaipc 0.")
    broken = call("config", "show", "nowhere.toml")
    assert (broken.returncode, broken.stdout) == (2, "")
    assert broken.stderr == "fedaipc: nowhere.toml: no such file\n"
    assert call("data", "describe", "nowhere.csv").returncode == 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [("config", "show"), ("assets", "list")], ids=" ".join)
def test_a_reader_that_went_away_gets_no_traceback(words: tuple[str, ...]) -> None:
    """As in `fedaipc config show | head -n 1`, but surely too late: that is no failure."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "fedaipc.cli.main", *words],
        stdout=writer, stderr=subprocess.PIPE, text=True, check=False,
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


# config


def test_config_show_prints_toml_that_can_be_used_again(
    fedaipc: Callable[..., Ran], tmp_path: Path
) -> None:
    first = fedaipc("config", "show", "--set", "privacy.epsilon=3", "--set", "output.name=mine")
    (tmp_path / "mine.toml").write_text(first.out)
    again = fedaipc("config", "show", "mine.toml")
    assert again.out == first.out
    assert "# rounds: 30; for more than 10 labels 60" in first.out
    tree = tomllib.loads(again.out)
    assert tree["privacy"]["epsilon"] == 3
    assert tree["rounds"] == Settings().rounds  # defaults are shown too


def test_config_show_lists_whole_keys_even_on_a_narrow_screen(
    fedaipc: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "70")
    ran = fedaipc("config", "show", "--keys")
    for key in ("training.head_learning_rate", "server.learning_rate", "data.source"):
        assert key in ran.out
    assert "working" in ran.out


def test_config_check_says_what_is_promised(fedaipc: Callable[..., Ran]) -> None:
    rate = ("--set", "privacy.sampling_rate=0.1", *FEW)
    ran = fedaipc("config", "check", "--set", "rounds=2", *rate)
    assert ran.code == 0
    assert "the configuration is valid" in ran.out
    assert "recipe: head on mean-pooled states, 2 rounds of 1 step on 0.1 of" in ran.out
    assert "rounds = 2 is few: 30 are usual for 2 labels" in ran.out
    assert "2 rounds of 1 step at rate 0.1: epsilon 8.000" in ran.out
    assert "decline" not in ran.out
    small = (*rate, "--set", "rounds=40", "--set", "federation.lifetime_epsilon=7.5")
    assert "PCs will decline after 33 of 40 rounds" in fedaipc("config", "check", *small).out


def test_config_check_refuses_a_delta_that_simulate_refuses(fedaipc: Callable[..., Ran]) -> None:
    for unit, among in (("record", "size class 32"), ("client", "20 clients")):
        words = ("--set", "privacy.delta=0.009", "--set", f"privacy.unit={unit}", *FEW)
        line = refused(fedaipc("config", "check", *words), 6)
        assert f"privacy.delta = 0.009 is too large for {among}: choose at most" in line
        assert refused(fedaipc("simulate", *words), 6) == line
    assert fedaipc("config", "check", "--set", "privacy.kind=none",
                   "--set", "privacy.delta=0.009", *FEW).code == 0  # fmt: skip


def test_config_check_says_both_promises_of_distributed_noise(
    fedaipc: Callable[..., Ran],
) -> None:
    words = ("config", "check", *FEW, "--set", "federation.clients=10")
    said = fedaipc(*words, "--set", "privacy.noise=distributed").out
    (line,) = (line for line in said.splitlines() if "distributed noise" in line)
    assert "with 6 honest PCs in each sum" in line
    assert "against whoever reads one PC's own update" in line
    first, second = (float(x) for x in re.findall(r"epsilon (\d+\.\d+)(?: charged| \(RDP\))", said))
    assert first <= 8 < second
    assert "distributed noise" not in fedaipc(*words).out
    coarse = ("--set", "privacy.noise=distributed", "--set", "aggregation.bits=16")
    assert "too coarse" in refused(fedaipc(*words, *coarse), 2)


def test_config_check_says_whether_noise_is_too_strong(fedaipc: Callable[..., Ran]) -> None:
    """As simulate will: 100 PCs of 32 sentences learn something at epsilon 8, nothing at 1."""
    words = ("--set", "data.limit=4000", "--set", "federation.clients=100")
    assert "too strong" not in fedaipc("config", "check", *words).out
    tight = fedaipc("config", "check", *words, "--set", "privacy.epsilon=1").out
    (line,) = (line for line in tight.splitlines() if "too strong" in line)
    for fact in ("100 PCs of about 32 records", "2 labels", "770 trained values", "30 rounds",
                 "What helps: more records on each PC"):  # fmt: skip
        assert fact in line
    assert "too strong" not in fedaipc("config", "check", *words, "--set", "privacy.kind=none").out


def test_config_check_says_what_is_sealed_and_refuses_what_cannot_be(
    fedaipc: Callable[..., Ran],
) -> None:
    assert (
        "for 20 PCs (federation.clients): no sum of fewer than 14 PCs is unmasked; 2 of 20 may"
        in fedaipc("config", "check", *FEW).out
    )
    refused(fedaipc("config", "check", "--set", "federation.clients=2"), 2)
    plain = fedaipc(
        "config", "check", "--set", "aggregation.kind=plain", "--set", "federation.clients=2", *FEW
    )
    assert "NOT SEALED" in plain.out


def test_config_check_refuses_a_base_as_simulate_does(
    fedaipc: Callable[..., Ran], tmp_path: Path
) -> None:
    """A decoder, another architecture, an odd activation, a base without its tokenizer."""
    write_reviews(tmp_path / "own.csv")
    names = ("data.source=own.csv", "data.text_column=body", "data.label_column=stars",
             "federation.clients=3", "rounds=1", "model.base=base",
             "model.max_length=16")  # fmt: skip
    flags = [word for name in names for word in ("--set", name)]
    config = json.loads((make_folder(tmp_path / "base", "bert") / "config.json").read_text())
    for change in ({"model_type": "gpt2"}, {"is_decoder": True}, {"hidden_act": "silu"},
                   {"auto_map": {"AutoModel": "a.b"}}, {"num_hidden_layers": 9}):  # fmt: skip
        (tmp_path / "base" / "config.json").write_text(json.dumps({**config, **change}))
        ran = fedaipc("config", "check", *flags)
        line = refused(ran, 5)
        assert line == refused(fedaipc("simulate", *flags), 5)
        assert "the configuration is valid" not in ran.out
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    assert "the configuration is valid" in fedaipc("config", "check", *flags).out
    (tmp_path / "base" / "tokenizer.json").unlink()
    assert "holds no tokenizer" in refused(fedaipc("config", "check", *flags), 5)
    assert "holds no tokenizer" in refused(fedaipc("simulate", *flags), 5)


def test_config_check_and_describe_say_how_texts_fit_the_model(
    fedaipc: Callable[..., Ran], tmp_path: Path
) -> None:
    write_reviews(tmp_path / "own.csv")
    make_folder(tmp_path / "base", "bert")
    sets = (
        "--set",
        "model.base=base",
        "--set",
        "model.max_length=8",
        "--set",
        "federation.clients=3",
    )
    described = fedaipc(
        "data", "describe", "own.csv", "--text", "body", "--label", "stars", "--clients", "3", *sets
    )
    columns = ("--set", "data.source=own.csv", "--set", "data.text_column=body",
               "--set", "data.label_column=stars")  # fmt: skip
    checked = fedaipc("config", "check", *sets, *columns)
    for ran in (described, checked):
        assert ran.code == 0
        assert "100.0% of tokens unknown, 100.0% of texts cut" in ran.out
        assert "note: 100% of the tokens of the training texts are not in" in ran.out
        assert "are longer than model.max_length" in ran.out
    assert "validation texts: 100.0% of tokens unknown" in checked.out
    gone = fedaipc("data", "describe", "own.csv", "--text", "body", "--label", "stars",
                   "--clients", "3", "--set", "model.base=./none")  # fmt: skip
    assert gone.code == 0
    assert "how the texts fit the model is not known: model.base = ./none" in gone.out


def test_config_check_of_a_federations_job_looks_at_its_public_texts(
    fedaipc: Callable[..., Ran], tmp_path: Path
) -> None:
    make_folder(tmp_path / "base", "bert")
    for name in ("validation", "test"):
        (tmp_path / f"{name}.csv").write_text(f"text,label\nw1 {name},yes\nw2 {name},no\n")
    sets = ("model.base=base", "model.max_length=16", "data.validation=validation.csv",
            "data.test=test.csv")  # fmt: skip
    ran = fedaipc("config", "check", *(word for one in sets for word in ("--set", one)))
    assert ran.code == 0
    assert "validation texts: 50.0% of tokens unknown, 0.0% of texts cut" in ran.out
    assert "training texts" not in ran.out


def test_config_check_without_privacy_says_so(fedaipc: Callable[..., Ran]) -> None:
    assert "NOT PRIVATE" in fedaipc("config", "check", "--set", "privacy.kind=none", *FEW).out


@pytest.mark.parametrize("command", ["show", "check"])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[data\n", "my.toml: not valid TOML"),
        ("[data]\nsauce = 'a'\n", "data.sauce: unknown key; did you mean source?"),
        ("[federation]\nclients = 0\n", "(allowed: from 1 to 10000)"),
    ],
)
def test_a_config_that_cannot_be_is_refused(
    fedaipc: Callable[..., Ran], tmp_path: Path, command: str, text: str, said: str
) -> None:
    (tmp_path / "my.toml").write_text(text)
    assert said in refused(fedaipc("config", command, "my.toml"), 2)


def test_a_target_that_no_noise_reaches_is_refused(fedaipc: Callable[..., Ran]) -> None:
    many = ("--set", "rounds=100000", "--set", "training.local_steps=100000", *FEW)
    refused(fedaipc("config", "check", "--set", "privacy.epsilon=1e-6", *many), 6)


# assets


def test_assets_list_and_fetch_agree(fedaipc: Callable[..., Ran], spam: Path) -> None:
    listed = fedaipc("assets", "list")
    rows = json.loads(fedaipc("assets", "list", "--json").out)
    assert {row["name"] for row in rows} == {
        "minilm-l6", "sentiment-4", "sms-spam", "short-reviews",
    }  # fmt: skip
    assert all(row["name"] in listed.out and row["licence"] in listed.out for row in rows)
    assert [row["cached"] for row in rows if row["name"] == "sms-spam"] == [True]
    assert json.loads(fedaipc("assets", "fetch", "sms-spam", "--json").out) == {
        "sms-spam": str(spam)
    }
    assert fedaipc("assets", "fetch", "sms-spam").out == f"sms-spam: {spam}\n"


def test_an_unknown_asset_is_refused(fedaipc: Callable[..., Ran]) -> None:
    assert "did you mean sms-spam?" in refused(fedaipc("assets", "fetch", "sms-span"), 4)


# data


def test_data_describe_shows_what_each_pc_holds(
    fedaipc: Callable[..., Ran], tmp_path: Path
) -> None:
    write_reviews(tmp_path / "reviews.csv", 90, customers=3)
    ran = fedaipc("data", "describe", *REVIEWS, "--by", "customer")
    assert ran.code == 0
    assert ran.out.count("customer ") == 3
    assert "72 training, 9 validation and 9 test texts" in ran.out
    rows = json.loads(fedaipc("data", "describe", *REVIEWS, "--by", "customer", "--json").out)
    assert [row["groups"] for row in rows] == [["customer 0"], ["customer 1"], ["customer 2"]]
    assert sum(row["records"] for row in rows) == 72
    assert all(sum(row["labels"].values()) == row["records"] for row in rows)
    assert {tuple(row["labels"]) for row in rows} == {("1", "5")}


def test_data_describe_takes_a_config_as_well(fedaipc: Callable[..., Ran], tmp_path: Path) -> None:
    write_reviews(tmp_path / "reviews.csv")
    (tmp_path / "my.toml").write_text(
        '[data]\nsource = "reviews.csv"\ntext_column = "body"\nlabel_column = "stars"\n'
    )
    rows = json.loads(fedaipc("data", "describe", "my.toml", "--clients", 4, "--json").out)
    assert [row["records"] for row in rows] == [18, 18, 18, 18]


def test_no_more_pcs_are_made_than_a_column_has_values_left_after_the_splits(
    fedaipc: Callable[..., Ran], tmp_path: Path
) -> None:
    """Single-record customers whose record is held back have no PC; nobody else is cut up."""
    write_reviews(tmp_path / "reviews.csv", 18, customers=12)
    rows = json.loads(fedaipc("data", "describe", *REVIEWS, "--by", "customer", "--json").out)
    homes = [group for row in rows for group in row["groups"]]
    assert len(homes) == len(set(homes))


def test_asking_for_fewer_pcs_than_min_pcs_is_refused_with_a_column_too(
    fedaipc: Callable[..., Ran], tmp_path: Path
) -> None:
    write_reviews(tmp_path / "reviews.csv", customers=3)
    ran = fedaipc(
        "data", "describe", *REVIEWS, "--by", "customer", "--set", "federation.min_clients=4"
    )
    assert "federation.min_clients = 4 can never be reached" in refused(ran, 2)


def test_names_that_look_like_markup_are_shown_as_they_are(
    fedaipc: Callable[..., Ran], tmp_path: Path
) -> None:
    lines = [f"text {n},{'[/bold]' if n % 2 else '[red]'},[/who]" for n in range(40)]
    (tmp_path / "odd.csv").write_text("\n".join(["text,label,user", *lines]))
    ran = fedaipc("data", "describe", "odd.csv", "--by", "user")
    assert ran.code == 0
    assert all(name in ran.out for name in ("[/bold]", "[red]", "[/who]"))


def test_holdings_are_drawn(fedaipc: Callable[..., Ran], tmp_path: Path) -> None:
    write_reviews(tmp_path / "reviews.csv")
    ran = fedaipc("data", "describe", *REVIEWS, "--clients", 3, "--plot", "pcs.svg", "--json")
    assert len(json.loads(ran.out)) == 3
    assert "<svg" in (tmp_path / "pcs.svg").read_text()
    refused(fedaipc("data", "describe", *REVIEWS, "--clients", 3, "--plot", "pcs.gif"), 12)
    refused(
        fedaipc("data", "describe", *REVIEWS, "--clients", 3, "--plot", "reviews.csv/a.png"), 12
    )


# report, predict, ledger: places where nothing is


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("report", "nowhere"), 12, "nowhere: no results.json here"),
        (("report", "."), 12, "no results.json here"),
        (("predict", "nowhere", "a text"), 12, "nowhere: no usable model here"),
        (("predict", ".", "a text"), 12, "no usable model here"),
        (("privacy", "ledger", "show", "nowhere"), 8, "nowhere: no such folder"),
        (("privacy", "ledger", "show", "."), 8, "holds no ledger"),
    ],
)
def test_a_folder_that_holds_nothing_is_refused(
    fedaipc: Callable[..., Ran], words: tuple[str, ...], code: int, said: str
) -> None:
    assert said in refused(fedaipc(*words), code)


def test_a_damaged_run_folder_is_refused(fedaipc: Callable[..., Ran], tmp_path: Path) -> None:
    (tmp_path / "pc-state.json").write_text("{")
    assert "pc-state.json: cannot be read" in refused(fedaipc("privacy", "ledger", "show", "."), 8)
    (tmp_path / "results.json").write_text("{}")
    assert "has no model yet" in refused(fedaipc("predict", ".", "a text"), 12)


@pytest.mark.parametrize("word", ["nonsense", "--nonsense", "simulate --clients many"])
def test_a_slip_in_the_command_itself_is_code_2(fedaipc: Callable[..., Ran], word: str) -> None:
    ran = fedaipc(*word.split())
    assert ran.code == 2
    assert "--help" in ran.err
    assert "Traceback" not in ran.err


def test_a_system_error_that_nobody_foresaw_is_one_line_too(
    fedaipc: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: Any, **_kwargs: Any) -> None:
        raise OSError(28, "No space left on device", "somewhere")

    monkeypatch.setattr("fedaipc.cli.config.load_settings", full)
    assert refused(fedaipc("config", "show"), 1) == (
        "fedaipc: somewhere: No space left on device\n"
    )


def test_an_interrupt_is_code_130_and_says_how_to_go_on(
    fedaipc: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_args: Any, **_kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fedaipc.cli.config.load_settings", stop)
    ran = fedaipc("config", "show")
    assert "simulate --resume continues a run" in refused(ran, 130)


def test_doctor_measures_and_predicts_in_text_and_json(
    fedaipc: Callable[..., Ran], tmp_path: Path, minilm: Path
) -> None:
    write_reviews(tmp_path / "reviews.csv")
    (tmp_path / "prices.toml").write_text(
        "[pc]\nwatts = 50\ndollars_per_kwh = 0.2\n"
        "[[gpu]]\nname = 'mine'\ndollars_per_hour = 1.0\nwatts = 300\ntexts_per_second = 1e6\n",
        encoding="utf-8",
    )
    command = ("doctor", *REVIEWS, "--clients", 3, "--set", "model.keep_layers=1",
               "--set", "speed.device=cpu", "--prices", "prices.toml")  # fmt: skip
    ran = fedaipc(*command)
    assert ran.code == 0, ran.err
    for word in ("processor", "memory", "texts per second", "fastest: --set speed.device=cpu",
                 "this job, all 3 PCs simulated here", "GPU mine", "R = "):  # fmt: skip
        assert word in ran.out
    report = json.loads(fedaipc(*command, "--json").out)
    assert report["speed_up"] is None  # only the processor was measured
    assert {speed["device"] for speed in report["speeds"]} == {"cpu"}
    assert report["forecast"]["texts"] == 72
    assert report["forecast"]["gpus"][0]["speed_up"] > 1


def test_doctor_refuses_a_price_table_that_it_cannot_read(
    fedaipc: Callable[..., Ran], tmp_path: Path
) -> None:
    write_reviews(tmp_path / "reviews.csv")
    assert "none.toml: cannot be read" in refused(
        fedaipc("doctor", *REVIEWS, "--prices", "none.toml"), 2
    )
