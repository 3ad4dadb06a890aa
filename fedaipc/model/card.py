"""The model card: what a result is, and the exact lines that use it. Everything in it is public."""

from __future__ import annotations

import json
import math
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from fedaipc.config import DPSGD
from fedaipc.data.assets import ASSETS
from fedaipc.model.base import WARM_UP, base_folder, is_local

if TYPE_CHECKING:
    from fedaipc.config import TextClassifier
    from fedaipc.results import Results, TextFit

_AVERAGE = """\
import torch
from transformers import AutoModelForTokenClassification, AutoTokenizer

folder = "."  # where this file lies
texts = ["a first text", "and another one"]
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForTokenClassification.from_pretrained(folder).eval()
"""
_AVERAGED = """\
batch = tokenizer(texts, truncation=True, padding=True, return_tensors="pt")
with torch.no_grad():
    logits = model(**batch).logits
mask = batch["attention_mask"].unsqueeze(-1)
probabilities = ((logits * mask).sum(1) / mask.sum(1)).softmax(-1)
for text, row in zip(texts, probabilities):
    print(model.config.id2label[int(row.argmax())], f"{row.max():.3f}", text)
"""
_PIPELINE = """\
from transformers import pipeline

folder = "."  # where this file lies
texts = ["a first text", "and another one"]
classify = pipeline("text-classification", model=folder)
for text, scores in zip(texts, classify(texts, truncation=True, top_k=None)):
    print(scores[0]["label"], f"{scores[0]['score']:.3f}", text)
"""
_ADAPTER = """\
from pathlib import Path

from peft import PeftModel
from transformers import {auto}, AutoTokenizer, pipeline

folder = "."  # where this file lies
labels = {labels}
base = {auto}.from_pretrained(
    Path({base}).expanduser(),  # {named}
    id2label=dict(enumerate(labels)),
    label2id={{label: number for number, label in enumerate(labels)}},
    num_hidden_layers={layers},
    ignore_mismatched_sizes=True,  # the adapter brings the head
)
model = PeftModel.from_pretrained(base, f"{{folder}}/adapter").eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
"""


def model_card(results: Results, settings: TextClassifier, layers: int) -> str:
    """Markdown for the folder that `export` writes; `layers` is how many the model has.

    `settings` are the job's. Raises ModelError where the base is no longer there.
    """
    name, base = _plain(results.name), _base_name(results, settings)
    labels = ", ".join(f"`{json.dumps(label)}`" for label in results.data.labels)
    rounds = sum(not one.void for one in results.rounds)
    pcs = max((one.asked for one in results.rounds), default=0)
    what = "PCs" if results.engine == "fleet" else "PCs, simulated on one machine"
    parts = [
        f"# {name}",
        (
            f"A classifier of texts with {len(results.data.labels)} labels: {labels}. It is "
            f"{base}, fine-tuned by federated learning with fedaipc {results.fedaipc} over "
            f"{rounds} rounds on {pcs} {what} ({settings.train.kind}, {settings.pooling} pooling, "
            f"run {results.run_id})."
        ),
        "## How to use it",
        _usage(settings),
        *(_adapter_usage(results, settings, layers) if settings.train.kind == "lora" else ()),
        "## Privacy",
        _privacy(results),
        "## Data",
        _data(results),
        "## How good it is",
        _scores(results),
        "## Limits",
        _limits(results, settings),
        "## Base and licence",
        (
            f"Base: {base}, SHA-256 {results.model.base_hash}. Licence of the base: "
            f"{_licence(results, settings)}. What the texts allow is for their owners to say."
        ),
    ]
    tags = "library_name: transformers\ntags:\n- text-classification\n- federated-learning\n"
    return f"---\n{tags}---\n\n" + "\n\n".join(parts) + "\n"


def _usage(settings: TextClassifier) -> str:
    if settings.pooling == "cls":
        code = _PIPELINE
        note = ""
    else:
        code = _AVERAGE + _AVERAGED
        note = (
            " The model averages over the tokens, which no sequence classification class of "
            'transformers does for this architecture: `pipeline("text-classification", ...)` and '
            "`AutoModelForSequenceClassification` raise an error here, on purpose."
        )
    return (
        f"```python\n{code}```\n\nWith `truncation=True` texts are cut after "
        f"{settings.max_length} tokens, as in training; without it a longer text is an error.{note}"
    )


def _adapter_usage(results: Results, settings: TextClassifier, layers: int) -> tuple[str, str]:
    auto = (
        "AutoModelForTokenClassification"
        if settings.pooling == "mean"
        else "AutoModelForSequenceClassification"
    )
    code = _ADAPTER.format(
        auto=auto,
        labels=json.dumps(list(results.data.labels)),
        base=json.dumps(_place(settings.base)),
        named=_plain(_base_name(results, settings)),
        layers=layers,
    )
    if settings.pooling == "mean":
        code = code.replace(", pipeline", "").replace("from pathlib", "import torch\nfrom pathlib")
        code += 'texts = ["a first text", "and another one"]\n' + _AVERAGED
    else:
        code += (
            'classify = pipeline("text-classification", model=model, tokenizer=tokenizer)\n'
            'print(classify(["a first text", "and another one"], truncation=True, max_length='
            f"{settings.max_length}, top_k=None))\n"
        )
    return (
        "### The adapter alone",
        (
            "The adapters are merged into the weights above. If you serve several adapters over "
            f"one base, `adapter/` holds them alone:\n\n```python\n{code}```"
        ),
    )


def _privacy(results: Results) -> str:
    if results.not_private:
        reasons = "; ".join(_plain(reason) for reason in results.not_private)
        return f"**NOT PRIVATE**: {reasons}. The model may repeat what it was trained on."
    facts, mechanism = results.privacy, results.privacy.dp_sgd
    assert mechanism is not None  # noqa: S101 - `Results` has reasons where it is None
    epsilon = _up(next((one.epsilon for one in reversed(results.rounds) if one.epsilon), None))
    what = "the gradient of each record" if facts.unit == "record" else "its whole update"
    clipped = f"Each PC clipped {what} to {mechanism.clip_norm:g} and added"
    several = "Several records of one person, or one held by several PCs, cost more."
    if facts.unit == "client":
        several = "Records of one person on several PCs cost more."
    noise = (
        f"{clipped} noise of {mechanism.multiplier:.4g} times that itself, before anything left it."
    )
    if mechanism.distributed:
        noise = (
            f"{clipped} a share of noise, so that a sum with {mechanism.honest} honest PCs carried "
            f"{mechanism.multiplier:.4g} times that. The promise rests on secure aggregation; "
            f"against whoever read a PC's own updates it is epsilon {_up(facts.local_epsilon)} "
            "over all attempts that the job allows."
        )
    if type(mechanism) is not DPSGD:
        noise = (
            f'The mechanism is "{mechanism.kind}", of another package, which says what it costs.'
        )
    return (
        f"Differential privacy per {facts.unit}: epsilon {epsilon} at delta {facts.delta:g} for a "
        f"PC that took part in every round of this run. Neighbouring data sets: "
        f"{facts.neighbours}. {noise} A PC that also took part in other runs has spent more: its "
        f"ledger says how much. {several}"
    )


def _up(epsilon: float | None) -> str:
    return "-" if epsilon is None else f"{math.ceil(epsilon * 100 - 1e-6) / 100:.2f}"


def _data(results: Results) -> str:
    data = results.data
    train = _file_name(data.source)  # in a fleet "the PCs' own texts"
    if data.train is not None:
        train = f"{data.train:,} texts ({train})"
    lines = [
        f"- trained on: {train}",
        f"- {data.validation:,} texts for validation, {data.test:,} held back for the test",
        *(f"- {_plain(note)}" for note in data.notes),
    ]
    fits = (("training", data.train_fit), ("validation", data.validation_fit))
    lines += [f"- {name} texts: {_fit(fit)}" for name, fit in fits if fit is not None]
    return "\n".join(lines)


def _fit(fit: TextFit) -> str:
    return (
        f"{fit.unknown_tokens:.1%} of the tokens are not in the vocabulary, {fit.cut_texts:.1%} of "
        "the texts are cut"
    )


def _scores(results: Results) -> str:
    test = results.test
    if test is None:
        return "Not measured."
    error = "" if not results.standard_error else f" ± {results.standard_error:.3f}"
    guess = results.data.majority
    beside = "" if guess is None else f"; always the commonest label: {guess:.3f}"
    rows = [
        f"| `{json.dumps(one.label)}` | {one.precision:.3f} | {one.recall:.3f} | {one.f1:.3f} | "
        f"{one.support:,} |"
        for one in results.test_classes
    ]
    return (
        f"On {test.examples:,} test texts that were used for no choice: accuracy "
        f"{test.accuracy:.3f}{error}{beside}; macro-F1 {test.macro_f1:.3f}.\n\n"
        "| label | precision | recall | F1 | texts |\n|---|---|---|---|---|\n" + "\n".join(rows)
    )


def _limits(results: Results, settings: TextClassifier) -> str:
    return "\n".join((
        "- It gives one of its labels to any text, also to one of another kind or language.",
        f"- It reads the first {settings.max_length} tokens of a text.",
        ("- Its probabilities are not calibrated, and how it treats groups of people was not "
        "measured."),
        "- A member that trains on wrong labels on purpose can shift it, and nothing detects that.",
        *(() if results.engine == "fleet" else (
            "- The PCs were simulated: one machine held all texts, as real PCs would not allow.",
        )),
    ))  # fmt: skip


def _base_name(results: Results, settings: TextClassifier) -> str:
    warm = results.warm_up
    if warm is not None:
        return (
            f"{_file_name(warm.base)} (trained before on {warm.texts:,} public texts of "
            f"{_file_name(warm.source)})"
        )
    return _file_name(settings.base)


def _licence(results: Results, settings: TextClassifier) -> str:
    base = settings.base if results.warm_up is None else results.warm_up.base
    return ASSETS[base].licence if base in ASSETS else "not known here; see where it came from"


def _place(base: str) -> str:
    """What transformers opens as the base here, without the name of a user."""
    if not (base in ASSETS or base.startswith(WARM_UP) or is_local(base)):
        return base  # of the hub
    folder = base_folder(base)
    home = Path.home()
    return (
        f"~/{folder.relative_to(home).as_posix()}" if folder.is_relative_to(home) else str(folder)
    )


def _file_name(place: str) -> str:
    """The last part of a path, which may name a user; an asset or an id of the hub as it is."""
    rooted = place.startswith((".", "~")) or PurePath(place).is_absolute()
    return _plain(PurePath(place).name if rooted else place)


def _plain(text: str) -> str:
    """`text` on one line, without what Markdown or HTML would act on."""
    kept = "".join(char if char.isprintable() else " " for char in text)
    return kept.translate({ord(char): None for char in "`<>[]|\\"})
