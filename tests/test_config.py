"""Settings: frozen, TOML in and out, and one helpful line for whatever cannot be."""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from pydantic import ValidationError

from fedaipc import config
from fedaipc.config import (
    DPSGD,
    BiTFiT,
    Choice,
    LastLayers,
    LoRA,
    NoPrivacy,
    OwnerSettings,
    Policy,
    Section,
    Settings,
    describe_fields,
    for_labels,
    load_owner,
    load_settings,
    recipe_text,
    rounds_warning,
    settings_from,
    to_toml,
)
from fedaipc.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from pydantic.fields import FieldInfo

SECTIONS = tuple(name for name in Settings.model_fields if name != "rounds")


def refusal(*overrides: str, **flags: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load_settings(None, overrides, flags)
    message = str(caught.value)
    assert "\n" not in message
    return message


def _file(folder: Path, text: str) -> Path:
    path = folder / "my.toml"
    path.write_text(text, encoding="utf-8")
    return path


# Valid settings, drawn from the fields themselves: a new field is covered on the day it comes.

_TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
_NAME = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)


def _values(field: FieldInfo) -> st.SearchStrategy[Any]:
    bounds: dict[str, Any] = {}
    choices: list[Any] = []
    kinds: set[Any] = set()
    named = False
    queue: list[Any] = [field.annotation, *field.metadata]
    while queue:
        item = queue.pop()
        named |= getattr(item, "pattern", None) is not None
        for key in ("gt", "ge", "lt", "le"):
            bounds |= {key: getattr(item, key)} if getattr(item, key, None) is not None else {}
        queue += getattr(item, "metadata", [])
        origin = get_origin(item)
        if origin is Literal:
            choices = list(get_args(item))
        elif origin is tuple:
            kinds.add(tuple)
        elif origin in (Union, types.UnionType) or hasattr(item, "__metadata__"):
            queue += get_args(item)
        elif isinstance(item, type):
            kinds.add(item)
    least, most = bounds.get("ge", bounds.get("gt")), bounds.get("le", bounds.get("lt"))
    if choices:
        drawn: st.SearchStrategy[Any] = st.sampled_from(choices)
    elif bool in kinds:
        drawn = st.booleans()
    elif float in kinds:
        drawn = st.floats(least, most, exclude_min="gt" in bounds, exclude_max="lt" in bounds)
    elif int in kinds:
        drawn = st.integers(least, most)
    else:
        drawn = _NAME if named else _TEXT
    return st.none() | drawn if type(None) in kinds else drawn


_CLASHING = {
    "trackers",
    "labels",
    "only",
    "min_clients",
    "epsilon",
    "noise_multiplier",
    "noise",
    "honest",
    "header",
    "encoding",
}


def _tree(draw: st.DrawFn, section: type[Section]) -> dict[str, Any]:
    """Some of a section's keys, all of them alone within their range."""
    if issubclass(section, Choice) and Choice in section.__bases__:
        section = section.kinds[draw(st.sampled_from(sorted(section.kinds)))]
    tree: dict[str, Any] = {}
    for name, field in section.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Section):
            tree[name] = _tree(draw, inner)
        elif name == "kind":
            tree[name] = field.default
        elif name not in _CLASHING and draw(st.booleans()):
            tree[name] = draw(_values(field))
    return {name: value for name, value in tree.items() if value is not None}


@st.composite
def _settings(draw: st.DrawFn) -> Settings:
    tree = _tree(draw, Settings)
    if tree["data"]["partition"]["kind"] == "column":
        tree["data"]["client_column"] = draw(_TEXT)
    if draw(st.booleans()):
        tree["data"]["encoding"] = draw(st.sampled_from(["auto", "utf-8", "cp1252"]))
    if draw(st.booleans()):
        tree["data"] |= {"header": False, "text_column": "2", "label_column": "1"}
    if draw(st.booleans()):
        tree["data"]["labels"] = draw(st.lists(_TEXT, min_size=2, max_size=4, unique=True))
    private = tree["privacy"]["kind"] != "none"
    if private and draw(st.booleans()):
        name, least = draw(st.sampled_from([("epsilon", 1e-3), ("noise_multiplier", 0.1)]))
        tree["privacy"][name] = draw(st.floats(least, 1000))
    if private and tree["aggregation"]["kind"] == "secagg" and draw(st.booleans()):
        tree["privacy"]["noise"] = "distributed"
        tree["training"] = {"local_steps": 1, "optimizer": "sgd"}
        tree["federation"].pop("weighting", None)
    if tree["privacy"].get("unit") == "client":
        tree["federation"].pop("weighting", None)
    if draw(st.booleans()):
        last = tree["federation"].get("clients", 20) - 1
        members = st.lists(st.integers(0, last), min_size=1, max_size=5, unique=True)
        tree["federation"]["only"] = draw(members)
    if not private and tree["aggregation"].get("bits") == 16:
        tree["aggregation"]["bits"] = 24
    return settings_from(tree)


@given(_settings())
@examples(max_examples=60)
def test_what_is_written_as_toml_reads_back_equal(
    tmp_path_factory: pytest.TempPathFactory, settings: Settings
) -> None:
    path = tmp_path_factory.getbasetemp() / "round-trip.toml"
    path.write_text(to_toml(settings), encoding="utf-8")
    assert load_settings(path) == settings


def test_an_owner_reads_back_equal(tmp_path: Path) -> None:
    owner = OwnerSettings(
        name="pc-1", source="./a.csv", size_class=64, base="minilm-l6", insecure_test_seed=3,
        admission="0f" * 32, policy=Policy(bits=(32,), min_sum=5),
    )  # fmt: skip
    assert load_owner(_file(tmp_path, to_toml(owner))) == owner


def test_no_config_at_all_gives_a_private_job() -> None:
    settings = load_settings()
    assert settings == Settings()
    assert settings.privacy == DPSGD(epsilon=8.0)


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_is_frozen(section: str) -> None:
    part = getattr(Settings(), section)
    name = next(iter(type(part).model_fields))
    with pytest.raises(ValidationError, match="frozen"):
        setattr(part, name, getattr(part, name))
    with pytest.raises(ValidationError, match="frozen"):
        setattr(Settings(), section, part)


def test_what_affects_only_speed_is_a_type_of_its_own() -> None:
    others = (config.DPSGD, config.TrainingSettings, config.FederationSettings)
    shared = [set(config.SpeedSettings.model_fields) & set(o.model_fields) for o in others]
    assert not set().union(*shared)


@pytest.mark.parametrize("section", SECTIONS)
def test_an_unknown_key_is_refused_by_its_path(section: str) -> None:
    message = refusal(f"{section}.qqq=1")
    assert message.startswith(f"{section}.qqq: unknown key")
    assert "; known keys: " + next(iter(type(getattr(Settings(), section)).model_fields)) in message


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ("federation.client=3", "federation.client: unknown key; did you mean clients?"),
        (
            "privacy.epsilonn=3",
            'privacy.epsilonn: unknown key of kind "dp-sgd"; did you mean epsilon?',
        ),
        ("federtion.pcs=3", "federtion: unknown key; did you mean federation?"),
        ("data.text=body", "data.text: unknown key; did you mean text_column?"),
        ("data.label=stars", "data.label: unknown key; did you mean label_column?"),
    ],
)
def test_a_slip_of_the_pen_gets_a_hint(given: str, hint: str) -> None:
    assert refusal(given) == hint


def test_an_unknown_section_in_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^traning: unknown key; did you mean training"):
        load_settings(_file(tmp_path, "[traning]\nlocal_steps = 2\n"))


@pytest.mark.parametrize(
    ("given", "allowed"),
    [
        ("federation.clients=0", "from 1 to 10000"),
        ("rounds=-1", "from 1 to 100000"),
        ("federation.fraction=0", "more than 0 to 1"),
        ("federation.fraction=1.01", "more than 0 to 1"),
        ("server.beta1=1", "from 0, less than 1"),
        ("federation.seed=9223372036854775808", "from 0 to 9223372036854775807"),
        ("privacy.epsilon=0", "more than 0 to 1000"),
        ("privacy.epsilon=nan", "more than 0 to 1000"),
        ("privacy.delta=0.01", "more than 0, less than 0.01"),
        ("privacy.sampling_rate=inf", "more than 0 to 1"),
        ("privacy.kind=central", "dp-sgd | none"),
        ("training.learning_rate=nan", "more than 0 to 1e+09"),
        ("model.max_length=3", "from 4 to 8192"),
        ("model.max_length=true", "from 4 to 8192"),
        ("rounds=true", "from 1 to 100000"),
        ("privacy.clip_norm=false", "from 1e-09 to 1e+09"),
        ("privacy.noise_multiplier=0.09", "from 0.1 to 1e+06"),
        ("model.train.kind=lorra", "head | bitfit | last-layers | full | lora"),
        ("output.plots=maybe", "true | false"),
        ("output.name=../elsewhere", "letters, digits and . _ - after the first"),
        ('output.name="a/b"', "letters, digits and . _ - after the first"),
        ('output.name="a\\n"', "letters, digits and . _ - after the first"),
    ],
)
def test_a_value_out_of_range_is_refused_with_path_and_range(given: str, allowed: str) -> None:
    message = refusal(given)
    assert message.startswith(given.partition("=")[0] + " = ")
    assert message.endswith(f"(allowed: {allowed})")


def test_a_refused_value_is_shown_but_never_at_length() -> None:
    assert "federation.clients = 'many':" in refusal("federation.clients=many")
    assert len(refusal(f"federation.clients={'x' * 10_000}")) < 250


def test_all_that_is_wrong_is_said_at_once() -> None:
    message = refusal("federation.clients=0", "model.max_lenght=8", "privacy.delta=1")
    assert all(
        key in message for key in ("federation.clients", "model.max_lenght", "privacy.delta")
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["output.name=2024"], "output.name = 2024: input should be text: put it in quotes"),
        (["data.labels=good"], "data.labels = 'good': input should be a list"),
        (["data.labels=[1, 2]"], "data.labels = 1: input should be text: put it in quotes"),
        (["data.source=[]"], "data.source = []: input should be text"),
        (['data.source=""'], "data.source = '': string should have at least 1 character"),
    ],
)
def test_a_value_of_the_wrong_kind_says_how_to_write_it(given: list[str], said: str) -> None:
    assert refusal(*given).startswith(said)


@pytest.mark.parametrize(
    ("given", "paths"),
    [
        (
            ["privacy.epsilon=3", "privacy.noise_multiplier=1"],
            ["privacy.epsilon", "privacy.noise_multiplier"],
        ),
        (["privacy.kind=none", "privacy.epsilon=3"], ["privacy.epsilon", 'kind "none"']),
        (["privacy=none", "privacy.noise_multiplier=3"], ["privacy.noise_multiplier"]),
        (["model.train=head", "model.train.rank=3"], ["model.train.rank", 'kind "head"']),
        (["data.partition.kind=column"], ["data.partition", "data.client_column"]),
        (['data.labels=["a"]'], ["data.labels"]),
        (['data.labels=["a", "a"]'], ["data.labels"]),
        (["federation.only=[]"], ["federation.only"]),
        (["federation.only=[1, 1]"], ["federation.only"]),
        (["federation.only=[0, 20]"], ["federation.only", "0 to 19"]),
        (["federation.only=[-1]"], ["federation.only", "0 to 19"]),
        (["federation.min_clients=21"], ["federation.min_clients = 21", "from 1 to 20"]),
        (
            ["federation.min_clients=11", "federation.fraction=0.5"],
            ["federation.min_clients = 11", "from 1 to 10"],
        ),
        (
            ["federation.min_clients=2", "federation.only=[3]"],
            ["federation.min_clients = 2", "from 1 to 1"],
        ),
    ],
)
def test_an_impossible_combination_names_its_keys_in_full(
    given: list[str], paths: list[str]
) -> None:
    message = refusal(*given)
    assert all(path in message for path in paths)
    assert message.startswith(
        ("privacy.", "data.", "federation.", "model.train", "give one of privacy")
    )


def dp_sgd(*overrides: str) -> DPSGD:
    privacy = load_settings(overrides=overrides).privacy
    assert isinstance(privacy, DPSGD)
    return privacy


def test_epsilon_8_is_the_default_only_where_nothing_else_was_said_of_noise() -> None:
    assert dp_sgd("privacy.clip_norm=2").epsilon == 8.0
    assert dp_sgd("privacy.noise_multiplier=1").epsilon is None
    assert load_settings(overrides=["privacy.kind=none"]).privacy == NoPrivacy()


def test_the_default_trains_a_head_on_all_records_with_fedadam() -> None:
    settings = load_settings()
    assert (settings.model.train.kind, settings.model.pooling) == ("head", "mean")
    assert (settings.server.kind, settings.server.learning_rate) == ("fedadam", 0.05)
    assert (settings.privacy.sampling_rate, settings.training.local_steps) == (1.0, 1)


@pytest.mark.parametrize("method", ["bitfit", "lora", "last-layers", "full"])
def test_beyond_a_head_a_step_samples_unless_a_rate_is_given(method: str) -> None:
    settings = load_settings(overrides=[f"model.train.kind={method}"])
    privacy = dp_sgd(f"model.train.kind={method}")
    assert (privacy.sampling_rate, privacy.epsilon) == (0.1, 8.0)
    assert (settings.server.kind, settings.server.learning_rate) == ("fedavg", 1.0)
    given = [
        "privacy.sampling_rate=0.5",
        f"model.train.kind={method}",
        "privacy.noise_multiplier=2",
    ]
    privacy = dp_sgd(*given)
    assert (privacy.sampling_rate, privacy.epsilon) == (0.5, None)


@pytest.mark.parametrize("optimizer", ["fedavg", "fedavgm"])
def test_a_plain_average_is_taken_whole_unless_a_rate_is_given(optimizer: str) -> None:
    chosen = f"server.kind={optimizer}"
    assert load_settings(overrides=[chosen]).server.learning_rate == 1.0
    given = load_settings(overrides=[chosen, "server.learning_rate=0.3"])
    assert given.server.learning_rate == 0.3


@pytest.mark.parametrize(("labels", "rounds"), [(2, 30), (10, 30), (11, 60), (150, 60)])
def test_many_labels_take_more_rounds_unless_their_number_is_given(
    labels: int, rounds: int
) -> None:
    assert for_labels(load_settings(), range(labels)).rounds == rounds
    given = load_settings(overrides=["rounds=30"])
    assert for_labels(given, range(labels)).rounds == 30
    few = load_settings(overrides=["rounds=3"])
    said = rounds_warning(few, range(labels))
    assert said is not None
    assert f"rounds = 3 is few: {rounds} are usual for {labels} labels" in said
    assert rounds_warning(for_labels(load_settings(), range(labels)), range(labels)) is None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "head on mean-pooled states, 30 rounds of 1 step on all records, sgd at 1, clip 1"),
        (["server.kind=fedavg"], "fedavg at 1"),
        (["model.train.kind=lora", "training.local_steps=2"], "2 steps on 0.1 of the records"),
        (["privacy.kind=none"], "no clip"),
    ],
)  # fmt: skip
def test_a_recipe_is_one_line(given: list[str], said: str) -> None:
    text = recipe_text(load_settings(overrides=given))
    assert said in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("given", "section", "name", "value"),
    [
        ("federation.clients=7", "federation", "clients", 7),
        ("federation.clients = 7", "federation", "clients", 7),
        ("federation.only=[3, 1]", "federation", "only", (3, 1)),
        ("privacy.delta=1e-6", "privacy", "delta", 1e-6),
        ("output.plots=false", "output", "plots", False),
        ("data.source=my reviews.csv", "data", "source", "my reviews.csv"),
        ('data.source="12"', "data", "source", "12"),
        ("data.source=a=b.csv", "data", "source", "a=b.csv"),
        ("data.source=C:\\new\\texts.csv", "data", "source", "C:\\new\\texts.csv"),
        ("data.source=a\nb = 1", "data", "source", "a\nb = 1"),
        ('data.labels=["no", "yes"]', "data", "labels", ("no", "yes")),
        ("model.train.kind=last-layers", "model", "train", LastLayers()),
        ("model.train=last-layers", "model", "train", LastLayers()),
    ],
)
def test_set_takes_toml_values_and_bare_words(
    given: str, section: str, name: str, value: object
) -> None:
    assert getattr(getattr(load_settings(overrides=[given]), section), name) == value


def test_set_cannot_smuggle_a_second_line_in() -> None:
    assert refusal("federation.clients=3\nrounds = 4").startswith("federation.clients = '3")


@pytest.mark.parametrize("given", ["federation.clients", "=3", "", "federation"])
def test_set_without_section_or_value_is_refused(given: str) -> None:
    assert refusal(given) == f"--set {given}: write it as section.key=value"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["federation.clients.x=3"], "federation.clients"),
        (
            ["federation.clients=3", "federation.clients.x=3"],
            "federation.clients holds a value already",
        ),
        ([".pcs=3"], ": unknown key"),
        (["federation.=3"], "federation.: unknown key"),
    ],
)
def test_set_with_a_path_that_leads_nowhere_is_refused(given: list[str], said: str) -> None:
    assert said in refusal(*given)


def test_set_wins_over_flags_and_flags_win_over_the_file(tmp_path: Path) -> None:
    path = _file(tmp_path, "rounds = 3\n[federation]\nclients = 3\nspare_attempts = 3\n")
    flags = {"federation.clients": 4, "rounds": 4}
    settings = load_settings(path, ["rounds=5"], flags)
    federation = settings.federation
    assert (federation.spare_attempts, federation.clients, settings.rounds) == (3, 4, 5)


KINDS = """
[model.train]
kind = "lora"
rank = 16
[privacy]
clip_norm = 2.0
sampling_rate = 0.2
"""


@pytest.mark.parametrize("other", ["model.train.kind=bitfit", "model.train=bitfit"])
def test_another_kind_drops_the_keys_that_it_has_not(tmp_path: Path, other: str) -> None:
    given = [other, "privacy=none"]
    settings = load_settings(_file(tmp_path, KINDS), given)
    assert settings.model.train == BiTFiT()
    assert settings.privacy == NoPrivacy(sampling_rate=0.2)
    kept = load_settings(_file(tmp_path, KINDS), ["model.train.kind=lora"])
    assert kept.model.train == LoRA(rank=16)


def test_a_key_of_a_kind_that_is_named_by_a_word_can_be_set(tmp_path: Path) -> None:
    path = _file(tmp_path, '[model]\ntrain = "lora"\n')
    assert load_settings(path, ["model.train.rank=4"]).model.train == LoRA(rank=4)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[server]\nkind = 3\n", "server.kind = 3: not known here (allowed: fedavg | "),
        ("server = 3\n", "server: is a section"),
        ("[model]\ntrain = [1]\n", "model.train: is a section"),
        ("[aggregation]\nkind = 'plain'\nthreshold = 0.5\n",
         'aggregation.threshold: unknown key of kind "plain"'),
    ],
)  # fmt: skip
def test_a_choice_of_nothing_that_is_there_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(_file(tmp_path, text))
    assert str(caught.value).startswith(said)


def test_a_section_that_is_a_value_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^federation: is a section: .* clients, fraction$"):
        load_settings(_file(tmp_path, "federation = 3\n"))
    with pytest.raises(ConfigError, match=r"federation holds a value already"):
        load_settings(_file(tmp_path, "federation = 3\n"), ["federation.clients=3"])


@pytest.mark.parametrize(
    "text", ["[privacy\n", "pcs 20\n", '[data]\nsource = "a\n', "[a]\n[a]\n", "x = 1\nx = 2\n"]
)
def test_broken_toml_is_one_line_with_its_place(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"my\.toml: not valid TOML: .*line \d") as caught:
        load_settings(_file(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml: no such file"):
        load_settings(tmp_path / "nowhere.toml")
    with pytest.raises(ConfigError, match=r"cannot be read \(Is a directory\)"):
        load_settings(tmp_path)
    _file(tmp_path, "").write_bytes("[data]\nsource = 'Köln'".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"my\.toml: not UTF-8"):
        load_settings(tmp_path / "my.toml")
    with pytest.raises(ConfigError, match=r"Not a directory"):
        load_settings(tmp_path / "my.toml" / "below.toml")


def test_an_owners_file_is_named_when_something_in_it_is_wrong(tmp_path: Path) -> None:
    path = _file(tmp_path, 'name = "pc"\nsource = "a.csv"\nsize_clas = 4\n')
    with pytest.raises(ConfigError) as caught:
        load_owner(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "size_class: field required (allowed: from 1)" in str(caught.value)
    assert "size_clas: unknown key; did you mean size_class?" in str(caught.value)


def _sections(model: type[Section]) -> set[str]:
    return {path.partition(".")[0] for path, _, _ in describe_fields(model)}


def test_every_key_of_a_job_is_listed_with_its_meaning() -> None:
    rows = describe_fields(Settings)
    assert _sections(Settings) == {*SECTIONS, "rounds"}
    assert [path for path, _, meaning in rows if not meaning] == []
    assert len({path for path, _, _ in rows}) == len(rows)


def test_paths_say_from_where_they_count() -> None:
    meanings = {path: meaning for path, _, meaning in describe_fields(Settings)}
    for path in ("data.source", "output.folder"):
        assert "working directory" in meanings[path]
