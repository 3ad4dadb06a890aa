"""A base folder comes from strangers: what they plant in it is refused in one line, or harmless."""

from __future__ import annotations

import ast
import json
import os
import pickle
import pty
import re
import select
import shutil
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    GPT2Config,
    GPT2Model,
)

import fedaipc
from fedaipc.errors import ModelError
from fedaipc.model.classifier import Classifier
from fedaipc.model.load import quiet
from fedaipc.simulation import workers
from tests.support.tiny_models import FAMILIES, LABELS, make_folder, settings, shared_folder

if TYPE_CHECKING:
    from collections.abc import Callable

CODE = "import pathlib\npathlib.Path({mark!r}).touch()\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shutil.copytree(shared_folder("bert"), tmp_path / "model")


def change(file: Path, **values: Any) -> None:
    tree = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**tree, **values}))


def refused(base: Path, **changes: Any) -> str:
    with pytest.raises(ModelError) as error:
        Classifier(settings(base, **changes), LABELS)
    said = str(error.value)
    assert re.match(r"model\.[\w.]+ = ", said)
    assert "\n" not in said
    assert len(said) < 300
    return said


def test_one_module_lets_transformers_open_files() -> None:
    """So that no caller can forget to refuse code. `from_config` on the meta device opens none."""
    found = set()
    root = Path(fedaipc.__file__).parent.parent
    for path in (
        p for part in ("fedaipc", "scripts", "simulations") for p in (root / part).rglob("*.py")
    ):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
                ("from_pretrained", "torch.load", "pickle.load", "pickle.loads")
            ):
                if path == Path(workers.__file__):  # from a process that it started itself
                    assert ast.unparse(node) == "pickle.load(stream)"
                    continue
                found.add(path.relative_to(root).as_posix())
                given = {word.arg: ast.unparse(word.value) for word in node.keywords}
                assert given["trust_remote_code"] == "False"
                assert given["local_files_only"] == "True"
    assert found == {"fedaipc/model/load.py"}


# Code in a base folder


def plant_model_code(folder: Path, code: str) -> None:
    (folder / "evil.py").write_text(code)
    change(folder / "config.json", auto_map={
        "AutoConfig": "evil.Evil", "AutoModelForTokenClassification": "evil.Evil",
        "AutoModelForSequenceClassification": "evil.Evil",
    })  # fmt: skip


def plant_unknown_model(folder: Path, code: str) -> None:
    plant_model_code(folder, code)
    change(folder / "config.json", model_type="evil")


def plant_tokenizer_code(folder: Path, code: str) -> None:
    (folder / "evil.py").write_text(code)
    change(
        folder / "tokenizer_config.json", tokenizer_class="Evil",
        auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]},
    )  # fmt: skip


def plant_unknown_tokenizer(folder: Path, code: str) -> None:
    plant_tokenizer_code(folder, code)
    (folder / "tokenizer.json").unlink()


def plant_pickle(folder: Path, code: str) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return exec, (code,)

    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    save_file({}, folder / "other.safetensors")
    (folder / "model.safetensors").unlink()


def plant_shard(folder: Path, code: str) -> None:
    plant_pickle(folder, code)
    names = list(load_file(shared_folder("bert") / "model.safetensors"))
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, "pytorch_model.bin")})
    )


def plant_adapter(folder: Path, code: str) -> None:
    elsewhere = folder.parent / "elsewhere"
    shutil.copytree(folder, elsewhere)
    plant_model_code(elsewhere, code)
    change(folder / "adapter_config.json", base_model_name_or_path=str(elsewhere), peft_type="LORA")


PLANTED = (
    plant_model_code, plant_unknown_model, plant_tokenizer_code, plant_unknown_tokenizer,
    plant_pickle, plant_shard, plant_adapter,
)  # fmt: skip


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_planted_code_is_refused(
    folder: Path, tmp_path: Path, plant: Callable[[Path, str], None]
) -> None:
    plant(folder, CODE.format(mark=str(tmp_path / "ran")))
    refused(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
@pytest.mark.alone
def test_nothing_is_asked_and_a_y_runs_no_planted_code(tmp_path: Path) -> None:
    """Under a terminal where somebody keeps typing "y", in one process for all that is planted."""
    for plant in PLANTED:
        base = shutil.copytree(shared_folder("bert"), tmp_path / plant.__name__ / "model")
        plant(base, CODE.format(mark=str(tmp_path / plant.__name__ / "ran")))
    script = tmp_path / "load.py"
    script.write_text(
        "import sys\nfrom fedaipc.errors import ModelError\n"
        "from fedaipc.model.classifier import Classifier\n"
        "from fedaipc.config import TextClassifier\n"
        "for base in sys.argv[1:]:\n"
        "    try:\n        Classifier(TextClassifier(base=base, max_length=16), ('a', 'b'))\n"
        "    except ModelError as error:\n        print('refused:', error)\n"
    )
    controller, terminal = pty.openpty()
    kinds = termios.tcgetattr(terminal)
    kinds[3] &= ~termios.ECHO
    termios.tcsetattr(terminal, termios.TCSANOW, kinds)
    bases = [str(tmp_path / plant.__name__ / "model") for plant in PLANTED]
    process = subprocess.Popen(
        [sys.executable, str(script), *bases], stdin=terminal, stdout=terminal, stderr=terminal,
        env={**os.environ, "PYTHONPATH": str(Path(fedaipc.__file__).parent.parent)},
    )  # fmt: skip
    os.close(terminal)
    said, end, last = b"", time.monotonic() + 120, 0.0
    while time.monotonic() < end:
        if select.select([controller], [], [], 0.2)[0]:
            try:
                said += os.read(controller, 65536)
            except OSError:  # so Linux says that the other side is closed
                break
        if time.monotonic() > last + 0.2:
            last = time.monotonic()
            os.write(controller, b"y\n")
    assert process.wait(30) == 0
    os.close(controller)
    text = said.decode(errors="replace")
    assert not re.search(r"y/N|custom code\?", text)
    assert text.count("refused: model.base") == len(PLANTED), text
    assert not list(tmp_path.glob("*/ran"))


# Oddities in config.json and tokenizer_config.json


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
         "quantised"),
        ({"is_decoder": True}, "is a decoder"),
        ({"add_cross_attention": True}, "is a decoder"),
        ({"position_embedding_type": "relative_key"}, "relative"),
        ({"model_type": "gpt2"}, "gpt2 is not supported"),
        ({"model_type": ["bert"]}, "not supported"),
        ({"model_type": None}, "not supported"),
        ({"hidden_act": "silu"}, "its activation, silu"),
        ({"num_hidden_layers": 3}, "weights are missing or of another size"),
        ({"vocab_size": 60}, "weights are missing or of another size"),
        ({"hidden_size": "x"}, "cannot be loaded"),
    ],
    ids=str,
)  # fmt: skip
def test_a_config_that_cannot_be_used_is_refused(
    folder: Path, values: dict[str, Any], said: str
) -> None:
    change(folder / "config.json", **values)
    assert said in refused(folder)


@pytest.mark.parametrize("content", ["", "[]", "{", "[" * 100_000, "\udcff", "9" * 2_000_000])
def test_a_config_that_is_none_is_refused(folder: Path, content: str) -> None:
    (folder / "config.json").write_bytes(content.encode(errors="surrogateescape"))
    refused(folder)


def test_what_does_not_shape_the_model_is_left_out(folder: Path) -> None:
    change(
        folder / "config.json", torch_dtype="float16", dtype="bfloat16", attn_implementation="a/b",
        _attn_implementation="a/b", gradient_checkpointing=True, return_dict=False,
        output_attentions=True, torchscript=True, problem_type="multi_label_classification",
        transformers_weights="../x.safetensors", _name_or_path="evil/evil", hidden_dropout_prob=0.5,
        task_specific_params={"text-classification": {"auto_map": {}}}, label2id={"x": 0},
    )  # fmt: skip
    change(folder / "generation_config.json", auto_map={"a": "b"})
    plain, odd = (
        Classifier(settings(base, method="full"), LABELS)
        for base in (shared_folder("bert"), folder)
    )
    ours, theirs = (c.hf.config.to_dict() for c in (plain, odd))
    assert {k: v for k, v in ours.items() if k[0] != "_"} == {
        k: v for k, v in theirs.items() if k[0] != "_"
    }
    assert odd.hf.dtype == torch.float32
    assert odd.hf.config.problem_type == "single_label_classification"


@pytest.mark.parametrize(
    "values",
    [
        {"chat_template": "{{ cycler.__init__.__globals__.os.system('touch ran') }}"},
        {"tokenizer_file": "/etc/passwd", "vocab_file": "/etc/passwd"},
        {"tokenizer_class": "NoSuchTokenizer"},
        {"padding_side": "left", "model_max_length": 3},
    ],
    ids=lambda values: next(iter(values)),
)
def test_oddities_of_a_tokenizer_config_change_no_token(
    folder: Path, values: dict[str, Any]
) -> None:
    change(folder / "tokenizer_config.json", **values)
    odd, plain = (
        Classifier(settings(base), LABELS).tokenizer("w1 w7", truncation=True, max_length=16)
        for base in (folder, shared_folder("bert"))
    )
    assert odd["input_ids"] == plain["input_ids"]


# A tokenizer that is not there


def test_a_base_without_a_tokenizer_is_refused(folder: Path) -> None:
    """Transformers would invent five tokens, and every text would be unknown."""
    (folder / "tokenizer.json").unlink()
    assert "holds no tokenizer" in refused(folder)
    (folder / "tokenizer_config.json").unlink()
    assert "holds no tokenizer" in refused(folder)


def test_a_tokenizer_that_knows_no_word_is_refused(folder: Path) -> None:
    file = folder / "tokenizer.json"
    tree = json.loads(file.read_text())
    tree["model"]["vocab"] = {w: n for w, n in tree["model"]["vocab"].items() if w[0] == "["}
    file.write_text(json.dumps(tree))
    assert "knows no word" in refused(folder)


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff", b'{"model": {"type": "BPE"}}'])
def test_a_tokenizer_that_cannot_be_read_is_refused(folder: Path, content: bytes) -> None:
    (folder / "tokenizer.json").write_bytes(content)
    refused(folder)


# A head that is there already


def fine_tuned(folder: Path, family: str, auto: Any, labels: tuple[str, ...]) -> Path:
    """A published classifier: the body of `family` and a head for `labels`."""
    shutil.copytree(shared_folder(family), folder)
    with quiet():
        model = auto.from_pretrained(
            folder, num_labels=len(labels), id2label=dict(enumerate(labels))
        )
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if not name.startswith(model.base_model_prefix):
                    parameter.fill_(7.0)
        model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_for_other_labels_is_dropped_and_said_so(
    family: str, count: int, pooling: str, tmp_path: Path
) -> None:
    labels = tuple(f"other {n}" for n in range(count))
    base = fine_tuned(tmp_path / "m", family, AutoModelForSequenceClassification, labels)
    model = Classifier(settings(base, method="head", pooling=pooling), LABELS)
    assert model.notes == (
        (
            f"the base's own classification head for {count} labels is not used: this job trains a "
            "new one"
        ),
    )
    for name, parameter in model.hf.named_parameters():
        if "classifier" in name:
            assert parameter.abs().max() < 1, name
    again = Classifier(settings(base, method="head", pooling=pooling), LABELS)
    assert all(
        torch.equal(a, b)
        for (_, a), (_, b) in zip(model.trainable(), again.trainable(), strict=True)
    )


def test_a_head_for_these_labels_goes_on(tmp_path: Path) -> None:
    base = fine_tuned(tmp_path / "m", "bert", AutoModelForTokenClassification, LABELS)
    model = Classifier(settings(base, method="head"), LABELS)
    assert model.notes == ()
    assert float(model.hf.classifier.weight.detach().min()) == 7.0
    turned = Classifier(settings(base, method="head"), LABELS[::-1])
    assert turned.notes
    assert float(turned.hf.classifier.weight.detach().max()) < 1


@pytest.mark.parametrize("family", FAMILIES)
def test_a_plain_base_says_nothing(family: str) -> None:
    assert Classifier(settings(shared_folder(family)), LABELS).notes == ()


def test_a_decoder_is_refused(tmp_path: Path) -> None:
    base = make_folder(tmp_path / "m", "bert")
    with quiet():
        GPT2Model(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=50)).save_pretrained(base)
    assert "gpt2 is not supported" in refused(base)
