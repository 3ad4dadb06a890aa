"""What clipping costs: book-keeping and its rivals against an ordinary forward and backward pass.

    python scripts/bench/clipping.py [--quick] [PART...]    writes results/clipping.json beside this

Each pair (model and batch, way of clipping) runs in a process of its own, in which ordinary and
private passes alternate; a ratio is the median of the pairs' ratios, `spread` its quartiles.
Memory is the peak of a process that does one of the two alone. A whole step adds noise and the
optimizer; Opacus' noise is torch's own, ours is cryptographic. All compute in float32 unless
bfloat16 is said. Rivals: Opacus' hooks, its ghost mode and its functorch mode.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizer
from torch import nn
from torch.nn.functional import cross_entropy

from fedaipc.config import BiTFiT, Full, LoRA, SpeedSettings, TextClassifier, TrainingMethod
from fedaipc.coordinator.server_app import peak_memory
from fedaipc.machine import facts
from fedaipc.model.classifier import Batch, Classifier
from fedaipc.model.device import choose_device
from fedaipc.privacy.bookkeeping import BookKeepingModule
from fedaipc.privacy.dp_sgd import private_step
from fedaipc.privacy.randomness import SecureRandom
from fedaipc.privacy.rounding import EXACT as ROUNDING_EXACT
from fedaipc.privacy.rounding import rounding_for

if TYPE_CHECKING:
    from collections.abc import Callable

RESULT = Path(__file__).resolve().parent / "results" / "clipping.json"
CLIP, NOISE, LOGICAL, MICRO = 1.0, 1.0, (32, 256), 32


@dataclass(frozen=True)
class Subject:
    """A model, what of it is trained, one batch; `most` is what is asked of book-keeping."""

    method: str
    rows: int
    tokens: int
    shape: str = "MiniLM-L6"
    most: float | None = None
    max_memory: float | None = None


SUBJECTS = {
    "full, 32 x 64": Subject("full", 32, 64, most=1.25, max_memory=1.25),
    "full, 16 x 128": Subject("full", 16, 128, most=1.30),
    "LoRA on all linear layers, 32 x 64": Subject("lora", 32, 64, most=1.2),
    "biases and norms, 32 x 64": Subject("bitfit", 32, 64),
    "full, 8 x 64": Subject("full", 8, 64, shape="BERT-base", most=1.10),
}
METHODS: dict[str, TrainingMethod] = {
    "full": Full(),
    "lora": LoRA(layers=6, targets="all-linear"),
    "bitfit": BiTFiT(layers=6),
}
WAYS = ("book-keeping", "Opacus hooks", "Opacus ghost", "Opacus functorch")
EXACT = "book-keeping, exact sums"
PARTS = ("subjects", "exact", "whole_steps", "noise", "compiled")
QUICK = ("book-keeping", "Opacus hooks")


class BertBase(nn.Module):
    """BERT of 12 layers of width 768 with random weights: only its shape counts here."""

    def __init__(self) -> None:
        from transformers import BertConfig, BertForSequenceClassification

        super().__init__()
        config = BertConfig(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        self.bert: Any = BertForSequenceClassification(config)

    def forward(self, batch: Batch) -> torch.Tensor:
        ids = batch.values
        places = torch.arange(ids.shape[1]).expand(ids.shape).contiguous()
        return self.bert(  # type: ignore[no-any-return]
            input_ids=ids, attention_mask=batch.mask, position_ids=places,
            token_type_ids=torch.zeros_like(ids),
        ).logits  # fmt: skip


class Bench:
    """One subject in this process."""

    def __init__(self, subject: Subject, *, bfloat16: bool = False) -> None:
        choose_device(SpeedSettings())
        self.bfloat16, self.subject = bfloat16, subject
        self.rounding = rounding_for(subject.rows, subject.rows * subject.tokens, subject.tokens)
        ids = torch.randint(1000, 20000, (subject.rows, subject.tokens))
        self.batch = Batch(ids, torch.ones_like(ids))
        self.truth = torch.randint(0, 2, (subject.rows,))
        if subject.shape == "BERT-base":
            self.module: nn.Module = BertBase()
        else:
            settings = TextClassifier(train=METHODS[subject.method], max_length=subject.tokens)
            classifier = Classifier(settings, ("no", "yes"))
            self.batch = classifier.freeze_through(self.batch)
            self.module = classifier
        self.module.train()
        self.wrapped: Any = None
        self.trained = [p for p in self.module.parameters() if p.requires_grad]

    def loss(self, module: Any, reduction: str = "sum") -> Any:
        half = torch.autocast("cpu", torch.bfloat16) if self.bfloat16 else nullcontext()
        with half:
            logits = module(self.batch)
        return cross_entropy(logits.float(), self.truth, reduction=reduction)

    def plain(self) -> None:
        for parameter in self.trained:
            parameter.grad = None
        self.loss(self.module).backward()

    def clipped(self, way: str) -> Callable[[], None]:
        """Forward, backward and clipped sums, with the way's module around the model."""
        if way in {"book-keeping", EXACT}:
            book = self.wrapped = BookKeepingModule(
                self.module, rounding=ROUNDING_EXACT if way == EXACT else self.rounding
            )

            def run() -> None:
                self.loss(book).backward()
                for parameter, total in book.clipped_sums(CLIP):
                    parameter.summed_grad = total  # type: ignore[attr-defined]

            return run
        if way == "Opacus ghost":
            ghost = self.wrapped = GradSampleModuleFastGradientClipping(
                self.module, loss_reduction="sum", max_grad_norm=CLIP
            )

            def run_ghost() -> None:
                losses = self.loss(ghost, "none")
                losses.sum().backward(retain_graph=True)
                for parameter in self.trained:
                    parameter.grad = None
                factors = ghost.get_clipping_coef()
                ghost.disable_hooks()
                (factors * losses).sum().backward()
                ghost.enable_hooks()

            return run_ghost
        hooks = self.wrapped = GradSampleModule(
            self.module, loss_reduction="sum", force_functorch=way == "Opacus functorch"
        )
        optimizer = DPOptimizer(
            torch.optim.SGD(self.trained, lr=0.0),
            noise_multiplier=NOISE, max_grad_norm=CLIP, expected_batch_size=1,
        )  # fmt: skip

        def run_hooks() -> None:
            self.loss(hooks).backward()
            optimizer.clip_and_accumulate()
            for parameter in self.trained:
                parameter.grad_sample = None  # type: ignore[attr-defined]

        return run_hooks

    def free(self) -> None:
        """Take hooks and gradients away again."""
        if self.wrapped is not None:
            self.wrapped.remove_hooks()
            self.wrapped.cleanup()
        self.zero()

    def zero(self) -> None:
        for parameter in self.trained:
            parameter.grad = None
            parameter.summed_grad = None  # type: ignore[attr-defined]

    def step(self, way: str, logical: int) -> Callable[[], None]:
        """A whole step of plain SGD over `logical` examples in micro-batches of this batch."""
        sgd, parts = torch.optim.SGD(self.trained, lr=1e-6), logical // len(self.truth)
        if way == "ordinary":

            def plain() -> None:
                sgd.zero_grad()
                for _ in range(parts):
                    self.loss(self.module).backward()
                sgd.step()

            return plain
        if way == "book-keeping":
            book = self.wrapped = BookKeepingModule(
                self.module,
                rounding=rounding_for(
                    logical, self.subject.tokens * self.subject.rows, self.subject.tokens
                ),
            )
            random = SecureRandom()

            def ours() -> None:
                losses = ((self.loss(book), len(self.truth)) for _ in range(parts))
                private_step(
                    sgd, book, losses, noise_multiplier=NOISE, clip_norm=CLIP,
                    divisor=logical, random=random,
                )  # fmt: skip

            return ours
        hooks = self.wrapped = GradSampleModule(self.module, loss_reduction="sum")
        theirs = DPOptimizer(
            sgd, noise_multiplier=NOISE, max_grad_norm=CLIP, expected_batch_size=logical
        )
        return lambda: self._steps(hooks, theirs, parts)

    def _steps(self, module: Any, optimizer: DPOptimizer, parts: int) -> None:
        for part in range(parts):
            self.loss(module).backward()
            optimizer.signal_skip_step(do_skip=part < parts - 1)
            optimizer.step()
            optimizer.zero_grad()


def timed(job: Callable[[], None]) -> float:
    started = time.perf_counter()
    job()
    return time.perf_counter() - started


def pairs(name: str, way: str, repeats: int, *, bfloat16: bool = False) -> dict[str, Any]:
    """Alternate ordinary and private passes; the first pair warms up."""
    bench, floor = Bench(SUBJECTS[name], bfloat16=bfloat16), Bench(SUBJECTS[name])
    found = []
    for _ in range(repeats + 1):
        ordinary = timed(floor.plain)
        floor.zero()
        private = timed(bench.clipped(way))
        bench.free()
        found.append((ordinary, private))
    return summary(found[1:])


def steps(name: str, way: str, logical: int, repeats: int) -> dict[str, Any]:
    bench = Bench(SUBJECTS[name])
    found = []
    for _ in range(repeats + 1):
        ordinary = timed(bench.step("ordinary", logical))
        bench.zero()
        private = timed(bench.step(way, logical))
        bench.free()
        found.append((ordinary, private))
    return summary(found[1:])


def summary(found: list[tuple[float, float]]) -> dict[str, Any]:
    ratios = sorted(private / ordinary for ordinary, private in found)
    return {
        "ordinary_seconds": round(statistics.median(o for o, _ in found), 4),
        "private_seconds": round(statistics.median(p for _, p in found), 4),
        "ratio": round(statistics.median(ratios), 3),
        "spread": [round(float(q), 3) for q in np.quantile(ratios, [0.25, 0.75])],
    }


def compiled(name: str, repeats: int) -> dict[str, Any]:
    """An ordinary pass through torch.compile against one without; first calls compile."""
    floor, bench = Bench(SUBJECTS[name]), Bench(SUBJECTS[name])
    bench.module = torch.compile(bench.module)  # type: ignore[assignment]
    first = timed(bench.plain)
    found = []
    for _ in range(repeats + 1):
        pair = timed(floor.plain), timed(bench.plain)
        floor.zero()
        bench.zero()
        found.append(pair)
    return {**summary(found[1:]), "first_seconds": round(first, 1)}


def memory(name: str, way: str) -> int:
    """Peak memory of this process after three passes."""
    bench = Bench(SUBJECTS[name])
    job = bench.plain if way == "ordinary" else bench.clipped(way)
    for _ in range(3):
        job()
        bench.zero()
    return peak_memory()


def noise(values: int, repeats: int) -> dict[str, Any]:
    """Seconds for noise on so many values: torch's generator, and ours on one thread and on all."""
    sums = torch.zeros(values)

    def theirs() -> None:
        torch.normal(0.0, 1.0, (values,)).add_(sums)

    def ours() -> None:
        SecureRandom().noisy(sums.numpy(), 1.0, 2.0**-28)

    threads, found = torch.get_num_threads(), {}
    for label, job, count in (
        ("torch, not cryptographic", theirs, threads),
        ("ours, one thread", ours, 1),
        ("ours", ours, threads),
    ):
        torch.set_num_threads(count)
        found[label] = round(statistics.median([timed(job) for _ in range(repeats + 1)][1:]), 4)
    torch.set_num_threads(threads)
    return {"values": values, "threads": threads, "seconds": found}


def in_process(*what: str) -> Any:
    """The result of one measurement, made in a process of its own; None where it failed."""
    done = subprocess.run(
        [sys.executable, __file__, "--one", *what], capture_output=True, text=True, check=False
    )
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1][:200]}
    return json.loads(done.stdout.splitlines()[-1])


def one(kind: str, *what: str) -> Any:
    warnings.simplefilter("ignore")
    if kind == "pairs":
        return pairs(what[0], what[1], int(what[2]))
    if kind == "bfloat16":
        return pairs(what[0], "book-keeping", int(what[1]), bfloat16=True)
    if kind == "steps":
        return steps(what[0], what[1], int(what[2]), int(what[3]))
    if kind == "memory":
        return memory(what[0], what[1])
    if kind == "compiled":
        return compiled(what[0], int(what[1]))
    return noise(int(what[0]), int(what[1]))


def subjects(repeats: str, ways: tuple[str, ...]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, subject in SUBJECTS.items():
        ordinary = in_process("memory", name, "ordinary")
        measured: dict[str, Any] = {}
        for way in ways:
            # The slow ones need no ninth pair to be seen.
            count = repeats if way == "book-keeping" else "3"
            measured[way] = in_process("pairs", name, way, count)
            if "failed" not in measured[way]:
                measured[way]["peak_bytes"] = peak = in_process("memory", name, way)
                measured[way]["memory_ratio"] = round(peak / ordinary, 3)
            print(name, way, measured[way], flush=True)
        found[name] = {
            "shape": subject.shape, "rows": subject.rows, "tokens": subject.tokens,
            "ordinary_peak_bytes": ordinary, "most": subject.most,
            "max_memory": subject.max_memory, "ways": measured,
            "bfloat16": in_process("bfloat16", name, repeats),
        }  # fmt: skip
        print(name, "bfloat16", found[name]["bfloat16"], flush=True)
    return found


def whole_steps(repeats: str) -> dict[str, Any]:
    return {
        f"{way}, {logical}": in_process("steps", "full, 32 x 64", way, str(logical), count)
        for way, count in (("book-keeping", repeats), ("Opacus hooks", "3"))
        for logical in LOGICAL
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="What clipping costs.")
    parser.add_argument(
        "parts", nargs="*", help=f"of {', '.join(PARTS)}: the others stay as they are; else all"
    )
    parser.add_argument(
        "--quick", action="store_true", help="fewer repeats and rivals; writes nothing"
    )
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one(*arguments.one)))
        return
    repeats = "3" if arguments.quick else "9"
    parts: dict[str, Callable[[], Any]] = {
        "subjects": lambda: subjects(repeats, QUICK if arguments.quick else WAYS),
        "exact": lambda: {
            name: in_process("pairs", name, EXACT, repeats)
            for name, subject in SUBJECTS.items()
            if subject.method == "full"
        },
        "compiled": lambda: in_process("compiled", "full, 32 x 64", repeats),
        "whole_steps": lambda: whole_steps(repeats),
        "noise": lambda: in_process("noise", "22700000", repeats),
    }
    report = json.loads(arguments.out.read_text("utf-8")) if arguments.parts else {}
    report |= {name: parts[name]() for name in arguments.parts or PARTS}
    report |= {
        "threads": torch.get_num_threads(),
        "machine": facts(),
    }
    if not arguments.quick:
        arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({k: report[k] for k in PARTS[1:]}, indent=1))
    kept = True
    for name, subject in report["subjects"].items():
        ours = subject["ways"]["book-keeping"]
        for what, most in (("ratio", subject["most"]), ("memory_ratio", subject["max_memory"])):
            if most is not None and ours[what] > most:
                print(f"{name}: {what} {ours[what]} is above {most}")
                kept = False
    sys.exit(0 if kept else 1)


if __name__ == "__main__":
    main()
