"""Measure fedaipc's defaults on several tasks and write simulations/results/defaults/TASK.json.

    python simulations/defaults.py                     the bundled texts, seeds 1 2 3
    python simulations/defaults.py --texts FOLDER      and the public files named in FILES
    python simulations/defaults.py sms-spam --seeds 1  one task, other seeds (or --recipes)

PCs train and the server steps by fedaipc's own code. Only messages and sealing are left out, which
change no sum beyond its rounding: so the texts go through the frozen layers once for all runs. A
seed decides which PC holds which record; noise comes from the operating system.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fedaipc.config import for_labels, load_settings, recipe_text
from fedaipc.data.prepare import prepare_simulation
from fedaipc.machine import processor
from fedaipc.model.classifier import Batch, Classifier, read_vector, write_vector
from fedaipc.model.inputs import Inputs, make_inputs
from fedaipc.model.metrics import scores
from fedaipc.privacy.budget import planned_epsilon, round_schedule, size_class
from fedaipc.privacy.randomness import SecureRandom
from fedaipc.privacy.signal import noise_ratio
from fedaipc.privacy.training import train_round

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fedaipc.config import Settings

RESULTS = Path(__file__).parent / "results" / "defaults"
FILES = {
    "banking77": "banking_data/train.csv of github.com/PolyAI-LDN/task-specific-datasets",
    "meld": "data/MELD/train_sent_emo.csv of github.com/declare-lab/MELD",
}
FEW = ("data.source=sms-spam", "data.limit=1320", "data.test_size=400", "data.validation_size=280")
TASKS: dict[str, tuple[str, tuple[str, ...]]] = {  # name: what it is, settings
    "few-records": ("spam, 20 PCs of 32 messages", FEW),
    "sms-spam": (
        "spam, 20 PCs of 160 messages",
        ("data.source=sms-spam", "data.limit=3700", *FEW[2:3], "data.validation_size=100"),
    ),
    "many-pcs": (
        "sentiment, 100 PCs of 32 sentences",
        ("data.limit=4000", "federation.clients=100"),
    ),
    "sentiment": (
        "sentiment, 20 PCs of 160 sentences of one domain",
        ("data.limit=4000", "data.partition.kind=column", "data.client_column=domain"),
    ),
    "meld": (
        "three-class sentiment, 20 PCs by speaker",
        ("data.source={}/train_sent_emo.csv", "data.text_column=Utterance",
         "data.limit=5000", "data.label_column=Sentiment", "data.partition.kind=column",
         "data.client_column=Speaker"),
    ),
    "banking77": (
        "77 intents, 20 PCs",
        ("data.source={}/train.csv", "data.label_column=category", "data.limit=6000"),
    ),
}  # fmt: skip
RECIPES: dict[str, tuple[str, ...]] = {  # what is said beside the task
    "epsilon 8": (),
    "epsilon 2": ("privacy.epsilon=2.0",),
    "epsilon 1": ("privacy.epsilon=1.0",),
    "not private": ("privacy.kind=none",),
    "FedAvg at 0.5": ("server.kind=fedavg", "training.learning_rate=0.5"),
    "FedAvgM at 0.5, clip 2": (
        "server.kind=fedavgm", "training.learning_rate=0.5",
        "privacy.clip_norm=2.0",
    ),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=", ".join(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=RECIPES)
    parser.add_argument("--texts", type=Path, help="; ".join(FILES.values()))
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    for task in chosen.tasks or [name for name in TASKS if chosen.texts or name not in FILES]:
        if task not in TASKS or (task in FILES and chosen.texts is None):
            parser.error(f"{task}: no such task, or its file needs --texts")
        with tempfile.TemporaryDirectory(prefix="fedaipc-") as cache:
            _measure(task, chosen.texts, chosen.recipes, chosen.seeds, Path(cache))


def _measure(
    task: str, texts: Path | None, recipes: Sequence[str], seeds: Sequence[int], cache: Path
) -> None:
    what, settings = TASKS[task]
    words = [word.format(texts) for word in settings]
    report = {
        "task": task,
        "what": what,
        "source": FILES.get(task, "bundled"),
        "settings": [word for word in settings if "{}" not in word],
        "recipes": {
            name: _summary([_run([*words, *RECIPES[name]], seed, cache) for seed in seeds])
            for name in recipes
        },
        "machine": {
            "processor": processor(),
            "instruction_sets": torch.backends.cpu.get_cpu_capability(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "opacus", "numpy")},
        },
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{task}.json"
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {path}", flush=True)


def _run(words: Sequence[str], seed: int, cache: Path) -> dict[str, Any]:
    started = time.monotonic()
    settings = load_settings(None, [*words, f"data.seed={seed}"])
    data = prepare_simulation(settings.data, settings.federation.clients)
    settings = for_labels(settings, data.labels)
    number = {label: index for index, label in enumerate(data.labels)}
    classifier = Classifier(settings.model, data.labels)
    inputs = make_inputs(classifier, data.train.texts, cache)
    targets = np.array([number[label] for label in data.train.labels])
    sizes = [size_class(len(part)) for part in data.parts]
    pcs = [
        (Inputs(inputs.rows[part], None, inputs.most), targets[part], size)
        for part, size in zip(data.parts, sizes, strict=True)
    ]
    vector = _trained(classifier, settings, pcs)
    test = make_inputs(classifier, data.test.texts, cache)
    write_vector(classifier, vector)
    with torch.no_grad():
        predicted = classifier(Batch(torch.from_numpy(np.array(test.rows)), None)).numpy().argmax(1)
    truth = np.array([number[label] for label in data.test.labels])
    score, _ = scores(predicted, truth, data.labels, 0.0)
    once, values = round_schedule(settings), classifier.layout.size
    found = {
        "seed": seed,
        "test_accuracy": score.accuracy,
        "test_macro_f1": score.macro_f1,
        "test_texts": len(truth),
        "majority": float(np.bincount(truth).max() / len(truth)),
        "noise_ratio": noise_ratio(once, settings, values, sizes),
        "noise_multiplier": getattr(once.mechanism, "noise_multiplier", None),
        "planned_epsilon": planned_epsilon(once, settings.rounds)["rdp"] if once.private else None,
        "recipe": recipe_text(settings),
        "labels": len(data.labels),
        "trainable_parameters": values,
        "train_texts": len(data.train),
        "seconds": round(time.monotonic() - started, 1),
    }
    print(f"{found['recipe']}, seed {seed}: {score.accuracy:.4f}", flush=True)
    return found


def _trained(
    classifier: Classifier, settings: Settings, pcs: Sequence[tuple[Inputs, Any, int]]
) -> Any:
    """The model's vector after all rounds, as PCs and coordinator would make it."""
    once, vector = round_schedule(settings), read_vector(classifier)
    state: dict[str, Any] = {}
    total = sum(size for *_, size in pcs)
    for _ in range(settings.rounds):
        mean = np.zeros_like(vector)
        for inputs, targets, size in pcs:
            update = train_round(
                classifier, inputs, targets, vector, schedule=once, training=settings.training,
                size_class=size, micro_batch=0, random=SecureRandom(),
            )  # fmt: skip
            mean += update * np.float32(size / total)
        vector = settings.server.step(vector, mean, state)
    return vector


def _summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    accuracies = [run["test_accuracy"] for run in runs]
    return {
        "test_accuracy_mean": statistics.mean(accuracies),
        "test_accuracy_deviation": statistics.stdev(accuracies) if len(runs) > 1 else None,
        "runs": runs,
    }


if __name__ == "__main__":
    main()
