"""Realistic results without training anything."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedaipc.config import NoPrivacy, Schedule
from fedaipc.model.metrics import scores, standard_error
from fedaipc.results import (
    AggregationFacts,
    DataFacts,
    MachineFacts,
    ModelFacts,
    PcResult,
    PlannedEpsilon,
    PrivacyFacts,
    Results,
    RoundResult,
    Score,
)
from tests.support.schedules import dp_sgd

DOMAINS = ("movies", "tweets", "products", "news")
LIFETIME = 8.0


def make_results(
    *, pcs: int = 20, rounds: int = 40, private: bool = True, **changes: Any
) -> Results:
    """A finished run on the four-domain sentiment task; `changes` replaces top-level fields."""
    random = np.random.default_rng(7)
    labels = ("negative", "positive")
    truth = random.choice(2, size=2000, p=[0.47, 0.53])
    predicted = np.where(random.random(2000) < 0.77, truth, 1 - truth)
    test, classes = scores(predicted, truth, labels, 0.489)
    fields: dict[str, Any] = {
        "fedaipc": "0.1.0",
        "name": "demo",
        "run_id": "20250131-120000-3f9a",
        "engine": "in-process",
        "status": "finished",
        "started": "2025-01-31T12:00:00+00:00",
        "finished": "2025-01-31T12:03:41+00:00",
        "seconds": 221.4,
        "not_private": () if private else ("mode none: no noise",),
        "privacy": _privacy(rounds, private=private),
        "aggregation": AggregationFacts(
            kind="secagg", bits=32, bound=4096.0, colluding=2, least=14
        ),
        "model": ModelFacts(
            base="minilm-l6",
            method="bitfit",
            pooling="mean",
            trainable_parameters=10_754,
            total_parameters=22_713_986,
            base_hash="53aa5117" * 8,
            layout_hash="0b1c2d3e" * 8,
            vector_hash="9f8e7d6c" * 8,
            device="cpu",
            dtype="float32",
            reason="no accelerator found",
        ),
        "data": DataFacts(
            source="sentiment-4",
            labels=labels,
            train=pcs * 980,
            validation=2000,
            test=2000,
            majority=float(np.mean(truth)),
            notes=("1,084 duplicates removed",),
        ),
        "rounds": _rounds(rounds, pcs, random, private=private),
        "pcs": tuple(_pc(k, random, private=private) for k in range(pcs)),
        "validation": Score(accuracy=0.765, macro_f1=0.763, loss=0.492, examples=2000),
        "test": test,
        "test_classes": tuple(classes),
        "standard_error": standard_error(test.accuracy, test.examples),
        "machine": MachineFacts(
            cores=2,
            threads=2,
            memory_gb=7.7,
            processor="x86_64",
            python="3.11.7",
            torch="2.9.0",
            flwr="1.41.0",
            opacus="1.6.0",
            transformers="5.0.0",
        ),
        "peak_memory_bytes": 1_310_000_000,
    }
    return Results.model_validate({**fields, **changes})


def begun_results() -> Results:
    """The same run before its first round: what is written at the start."""
    nothing = dict.fromkeys(
        ("finished", "test", "standard_error", "validation", "peak_memory_bytes")
    )
    empty = {"rounds": (), "pcs": (), "test_classes": ()}
    return make_results().model_copy(update={**nothing, **empty, "status": "running"})


def _privacy(rounds: int, *, private: bool) -> PrivacyFacts:
    return PrivacyFacts(
        neighbours="add or remove one record of one PC",
        schedule=dp_sgd(1.62, 0.1, 5)
        if private
        else Schedule(mechanism=NoPrivacy(sampling_rate=0.1), steps=5),
        rounds=rounds,
        target_epsilon=8.0 if private else None,
        planned_epsilon=PlannedEpsilon(rdp=7.97, prv=7.41, pld=7.42) if private else None,
    )


def _rounds(
    count: int, pcs: int, random: np.random.Generator, *, private: bool
) -> tuple[RoundResult, ...]:
    out = []
    for number in range(1, count + 1):
        accuracy = 0.77 - 0.24 * float(np.exp(-number / 7)) + float(random.normal(0, 0.004))
        score = Score(accuracy=accuracy, macro_f1=accuracy - 0.003, loss=0.5, examples=2000)
        void = number == count // 2
        for attempt in (1, 2) if void else (1,):
            lost = void and attempt == 1
            out.append(
                RoundResult(
                    round=number,
                    attempt=attempt + (1 if number > count // 2 else 0),
                    void=lost,
                    seconds=5.2,
                    phases={"train": 4.1, "sum": 0.3, "evaluate": 0.8},
                    asked=pcs,
                    arrived=0 if lost else pcs - 1,
                    declined=0,
                    dropped=pcs if lost else 1,
                    bytes_down=pcs * 43_016,
                    bytes_up=pcs * 86_032,
                    epsilon=7.97 * (number / count) ** 0.55 if private else None,
                    validation=None if lost else score,
                )
            )
    return tuple(out)


def _pc(number: int, random: np.random.Generator, *, private: bool) -> PcResult:
    examples = int(random.integers(250, 1500))
    state = {3: "exhausted", 11: "absent"}.get(number, "active")
    spent = {"exhausted": LIFETIME, "absent": 2.3, "active": 7.97}[state]
    return PcResult.model_validate(
        {
            "name": f"pc-{number:03d}",
            "size_class": 2 ** int(np.ceil(np.log2(examples))),
            "examples": examples,
            "groups": (DOMAINS[number % 4],),
            "epsilon": spent - float(random.random()) * 0.3 if private else None,
            "lifetime_epsilon": LIFETIME if private else None,
            "charges": 40,
            "state": state,
        }
    )
