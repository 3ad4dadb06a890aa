"""How well can anybody tell that one text was used? Measured on one real step of one real PC.

.venv/bin/python simulations/learn/1_what_epsilon_means.py
"""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path

import numpy as np
from page import Page

from fedaipc.config import load_settings, settings_from
from fedaipc.data.prepare import prepare_simulation
from fedaipc.lab.audit.gradients import clipped, example_gradients
from fedaipc.model.classifier import Classifier, read_vector
from fedaipc.model.inputs import make_inputs
from fedaipc.privacy.accountant import epsilon_pld
from fedaipc.privacy.budget import round_schedule, size_class
from fedaipc.privacy.randomness import SecureRandom
from fedaipc.privacy.training import train_round

HERE = Path(__file__).parent
TRIES, TEXTS = 400, 60
BUDGETS = (0.5, 1.0, 2.0, 4.0, 8.0)


def main() -> None:
    page = Page(__file__)
    page.say("# What epsilon means on this task")
    page.say(
        "Epsilon bounds how much more likely any outcome gets because one text is there. Let "
        "a fair coin decide whether your text is used, and ask somebody who knows everything "
        "else. Whatever they look at, they are right at most e^epsilon / (1 + e^epsilon) of the "
        "time (except with probability delta)."
    )
    page.table(
        ("epsilon", "right at most"),
        [(f"{e:g}", f"{math.exp(e) / (1 + math.exp(e)):.1%}") for e in BUDGETS],
    )
    measured(page)
    costs(page)
    page.write()


def measured(page: Page) -> None:
    """Train one real step with and without one text, many times, and try to tell."""
    page.say("## Measured: one step of one PC, with and without one text")
    settings = load_settings(
        None,
        ["model.train.kind=head", "model.keep_layers=1", "data.limit=2000", "speed.threads=1",
         "privacy.sampling_rate=1.0", "training.local_steps=1", "training.learning_rate=1.0",
         "privacy.clip_norm=0.05"],
    )  # fmt: skip
    data = prepare_simulation(settings.data, settings.federation.clients)
    classifier = Classifier(settings.model, data.labels)
    records = data.train.take(range(TEXTS))
    targets = np.array([data.labels.index(label) for label in records.labels])
    with tempfile.TemporaryDirectory() as cache:  # the frozen part is computed once
        inputs = make_inputs(classifier, records.texts, Path(cache))
        fewer = make_inputs(classifier, records.texts[1:], Path(cache))
    start = read_vector(classifier)
    own = clipped(example_gradients(classifier, inputs, targets, start)[:1], 0.05)[0]
    direction = -own / np.linalg.norm(own)
    page.say(f"The text: *{records.texts[0]}*")
    page.say(
        f"A PC with {TEXTS} texts trains one step of the head, {TRIES} times with this text "
        f"and {TRIES} times without, each time with fresh noise. The attacker knows all other "
        "texts and looks along the one direction in which this text pushes the model: nobody "
        "can do better. `right` is how often it says correctly which of the two it was."
    )
    rows = []
    for epsilon in BUDGETS:
        tree = settings.model_dump(exclude_none=True)
        tree["privacy"] |= {"epsilon": epsilon}
        tree["rounds"] = 1
        job = settings_from(tree)
        once = round_schedule(job)
        noise = getattr(once.mechanism, "noise", 0.0)
        seen = []
        for these, labels in ((inputs, targets), (fewer, targets[1:])):
            values = [
                float(
                    train_round(
                        classifier, these, labels, start, schedule=once, training=job.training,
                        size_class=size_class(TEXTS), micro_batch=0, random=SecureRandom(),
                    )
                    @ direction
                )
                for _ in range(TRIES)
            ]  # fmt: skip
            seen.append(np.array(values))
        middle = (seen[0].mean() + seen[1].mean()) / 2
        right = ((seen[0] > middle).mean() + (seen[1] <= middle).mean()) / 2
        rows.append(
            (f"{epsilon:g}", f"{noise:.2f}", f"{right:.1%}",
             f"{math.exp(epsilon) / (1 + math.exp(epsilon)):.1%}",
             f"{epsilon_pld([once], job.privacy.delta):.2f}")
        )  # fmt: skip
    page.table(
        (
            "epsilon",
            "noise multiplier",
            "right",
            "bound",
            "epsilon by privacy loss distributions (PLD)",
        ),
        rows,
    )
    page.say(
        "The bound holds for every attacker and the worst outcome; `right` is the best attacker's "
        "average over all outcomes of one step, so it stays below."
    )


def costs(page: Page) -> None:
    """What each budget leaves of the accuracy, by the committed sweep."""
    page.say("## What it costs: the main task over three seeds")
    sweep = json.loads(
        (HERE.parent / "results" / "budget" / "sweep.json").read_text(encoding="utf-8")
    )
    page.table(
        ("epsilon", "partition", "test accuracy", "deviation"),
        [
            (point["values"]["privacy.epsilon"], point["values"]["data.partition"],
             f"{point['test_mean']:.4f}", f"{point['test_deviation']:.4f}")
            for point in sweep["points"]
        ],
    )  # fmt: skip
    page.say(
        "20 PCs with some 640 texts each. Epsilon counts per text and over all 30 rounds; noise is "
        "added on each PC, so that nobody has to be trusted with more."
    )


if __name__ == "__main__":
    main()
