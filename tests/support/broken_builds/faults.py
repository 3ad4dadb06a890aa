"""Wrong builds of fedaipc, each with one fault that a hurried programmer could make.

A fault is a function that patches the real code; its docstring says in one line what is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain, repeat
from typing import Any

import numpy as np
import pytest
import torch

from fedaipc.client import trainer
from fedaipc.client.client import Client
from fedaipc.privacy import bookkeeping, dp_sgd, norms, training
from fedaipc.privacy.bookkeeping import BookKeepingModule
from fedaipc.privacy.ledger import Charge, Ledger
from fedaipc.privacy.norms import Sizes
from fedaipc.privacy.randomness import SecureRandom
from fedaipc.protocol import noise_share
from fedaipc.protocol.messages import SetupRequest
from fedaipc.protocol.noise_share import NoiseShare

# Training


def no_noise(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(dp_sgd, "noisy", lambda total, **_: total)


def a_tenth_of_the_noise(patch: pytest.MonkeyPatch) -> None:
    stream: Any
    for stream in (SecureRandom, *SecureRandom.__subclasses__()):
        if "noisy" in vars(stream):
            real = stream.noisy
            patch.setattr(
                stream, "noisy", lambda self, v, d, s, real=real: real(self, v, d / 10, s)
            )


def no_clip(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(bookkeeping, "_factors", lambda sizes, *_: torch.ones_like(sizes.square))


def clip_of_the_batch_mean(patch: pytest.MonkeyPatch) -> None:
    real = BookKeepingModule.clipped_sums

    def clipped_sums(
        self: BookKeepingModule, bound: float, rows: int, *, exact: bool = False
    ) -> list:
        sums = list(real(self, 1e30, rows, exact=exact))
        norm = torch.stack([total.norm() for _, total in sums]).norm() / rows
        return [(p, total * (bound / norm).clamp(max=1)) for p, total in sums]

    patch.setattr(BookKeepingModule, "clipped_sums", clipped_sums)


def clip_per_layer(patch: pytest.MonkeyPatch) -> None:
    def clipped_sums(
        self: BookKeepingModule, bound: float, rows: int, *, exact: bool = False
    ) -> Iterator:
        self._sizes()
        for layer in self._layers:
            assert layer.sizes is not None
            factors = bookkeeping._factors(layer.sizes, bound, 1.0, self.rounding)[:rows]
            yield from layer.sums(factors, slice(rows), 0 if exact else self.rounding.terms)
            layer.forget()

    patch.setattr(BookKeepingModule, "clipped_sums", clipped_sums)


def norms_of_tokens_alone(patch: pytest.MonkeyPatch) -> None:
    def paired(a: torch.Tensor, g: torch.Tensor, terms: int) -> Sizes:
        square = (a * g).diagonal(dim1=1, dim2=2).sum(1).double()
        return Sizes(square, torch.zeros_like(square))

    patch.setattr(norms, "paired", paired)


def noise_from_a_fixed_seed(patch: pytest.MonkeyPatch) -> None:
    real = SecureRandom.noisy
    patch.setattr(SecureRandom, "noisy", lambda _, v, d, s: real(SecureRandom.for_test(1), v, d, s))


def empty_sample_skipped(patch: pytest.MonkeyPatch) -> None:
    real = dp_sgd.private_step

    def private_step(optimizer: Any, module: Any, losses: Iterable, **known: Any) -> None:
        drawn = iter(losses)
        first = next(drawn, None)
        if first is not None:
            real(optimizer, module, chain([first], drawn), **known)

    patch.setattr(dp_sgd, "private_step", private_step)


def noise_in_the_first_step_only(patch: pytest.MonkeyPatch) -> None:
    real, stepped = dp_sgd.private_step, set()

    def private_step(optimizer: Any, *rest: Any, noise_multiplier: float, **known: Any) -> None:
        noise = 0.0 if id(optimizer) in stepped else noise_multiplier
        stepped.add(id(optimizer))
        kept.append(optimizer)  # or another one could get its identity
        real(optimizer, *rest, noise_multiplier=noise, **known)

    kept: list[Any] = []
    patch.setattr(dp_sgd, "private_step", private_step)


def true_count_as_divisor(patch: pytest.MonkeyPatch) -> None:
    real = training.train_round

    def train_round(*args: Any, **named: Any) -> object:
        return real(*args, **{**named, "size_class": len(args[1])})

    patch.setattr(training, "train_round", train_round)


def drawn_count_as_divisor(patch: pytest.MonkeyPatch) -> None:
    real: Any = dp_sgd.private_step

    def private_step(
        optimizer: Any, module: Any, losses: Iterable, *, divisor: float, **known: Any
    ) -> None:
        drawn = torch.zeros(())

        def counted() -> Iterator:
            for loss, rows in losses:
                drawn.add_(rows)
                yield loss, rows
            drawn.clamp_(min=1)

        real(optimizer, module, counted(), divisor=drawn, **known)

    patch.setattr(dp_sgd, "private_step", private_step)


def sample_of_fixed_size(patch: pytest.MonkeyPatch) -> None:
    def sample(self: SecureRandom, count: int, rate: float) -> np.ndarray:
        return np.argsort(self.uint64(count))[: round(count * rate)]

    patch.setattr(SecureRandom, "poisson_sample", sample)


def noise_in_round_0_only(patch: pytest.MonkeyPatch) -> None:
    rounds: list[int] = []
    real_train, real_noisy = trainer.Trainer.train, dp_sgd.noisy
    real_round = training.train_round

    def train(self: trainer.Trainer, admitted: trainer.Admitted) -> bytes:
        rounds.append(self._request.round)
        return real_train(self, admitted)

    def train_round(*args: Any, **named: Any) -> object:
        rounds.append(1 if not rounds else 2)
        return real_round(*args, **named)

    def noisy(total: torch.Tensor, *, noise_multiplier: float, **known: Any) -> torch.Tensor:
        noise = 0.0 if rounds[-1] > 1 else noise_multiplier
        return real_noisy(total, noise_multiplier=noise, **known)

    patch.setattr(trainer.Trainer, "train", train)
    patch.setattr(training, "train_round", train_round)
    patch.setattr(dp_sgd, "noisy", noisy)


def poisson_sampling_off(patch: pytest.MonkeyPatch) -> None:
    def sample(_self: SecureRandom, count: int, _rate: float) -> np.ndarray:
        return np.arange(count)

    patch.setattr(SecureRandom, "poisson_sample", sample)


# Shares of noise


def shares_for_all_who_answer(patch: pytest.MonkeyPatch) -> None:
    real = noise_share.noise_share

    def of_all(mechanism: Any, terms: Any, own: bytes) -> NoiseShare:
        found = real(mechanism, terms, own)
        return replace(
            found, deviation=found.deviation * math.sqrt(mechanism.honest / terms.cohort)
        )

    patch.setattr(noise_share, "noise_share", of_all)


def a_pc_without_its_share(patch: pytest.MonkeyPatch) -> None:
    real = noise_share.noise_share

    def of_others(mechanism: Any, terms: Any, own: bytes) -> NoiseShare:
        found = real(mechanism, terms, own)
        return found if terms.place(own) != 3 else replace(found, deviation=0.0)

    patch.setattr(noise_share, "noise_share", of_others)


def the_same_share_twice(patch: pytest.MonkeyPatch) -> None:
    real, first = NoiseShare.encode, SecureRandom().key()

    def encode(self: NoiseShare, total: Any, random: SecureRandom) -> Any:
        return real(self, total, SecureRandom(first))

    patch.setattr(NoiseShare, "encode", encode)


def shares_from_a_fixed_seed(patch: pytest.MonkeyPatch) -> None:
    real, used = NoiseShare.encode, chain.from_iterable(repeat(range(6)))

    def encode(self: NoiseShare, total: Any, random: SecureRandom) -> Any:
        return real(self, total, SecureRandom.for_test(1, next(used)))

    patch.setattr(NoiseShare, "encode", encode)


def limit_after_the_share(patch: pytest.MonkeyPatch) -> None:
    def encode(self: NoiseShare, total: Any, random: SecureRandom) -> Any:
        noisy = random.noisy(total * self.factor * self.encoding.scale, self.deviation, 1.0)
        np.clip(noisy, -self.limit, self.limit, out=noisy)
        return noisy.astype(np.int64).astype(self.encoding.dtype)

    patch.setattr(NoiseShare, "encode", encode)


# Whole updates


def whole_update_not_clipped(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(dp_sgd, "clipped_update", lambda update, _: update.astype(np.float64))


def each_value_clipped_by_itself(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        dp_sgd, "clipped_update",
        lambda update, bound: np.clip(update.astype(np.float64), -bound, bound),
    )  # fmt: skip


# Accounting


def a_new_engine_per_round(patch: pytest.MonkeyPatch) -> None:
    def mechanisms(self: Ledger) -> tuple[object, ...]:
        last = self.charges[-1:]
        return tuple(charge.schedule for charge in last if charge.schedule.private)

    patch.setattr(Ledger, "schedules", property(mechanisms))


def charge_after_training(patch: pytest.MonkeyPatch) -> None:
    waiting: list[tuple[Ledger, Charge]] = []
    real_charge, real_train = Ledger.charge, trainer.Trainer.train

    def charge(self: Ledger, entry: Charge) -> None:
        waiting.append((self, entry))

    def train(self: trainer.Trainer, admitted: trainer.Admitted) -> bytes:
        frame = real_train(self, admitted)
        while waiting:
            real_charge(*waiting.pop())
        return frame

    patch.setattr(Ledger, "charge", charge)
    patch.setattr(trainer.Trainer, "train", train)


def budget_per_run(patch: pytest.MonkeyPatch) -> None:
    real = Ledger.charge

    def charge(self: Ledger, entry: Charge) -> None:
        self.at_hand = entry.run  # type: ignore[attr-defined]
        real(self, entry)

    def mechanisms(self: Ledger) -> tuple[object, ...]:
        run = getattr(self, "at_hand", None)
        return tuple(c.schedule for c in self.charges if c.run == run and c.schedule.private)

    patch.setattr(Ledger, "charge", charge)
    patch.setattr(Ledger, "schedules", property(mechanisms))


def true_count_as_weight(patch: pytest.MonkeyPatch) -> None:
    from fedaipc.data.sources import read_records

    real = Client.setup

    def setup(self: Client, request: SetupRequest) -> object:
        records = read_records(self.source, self.owner).records
        self.owner = self.owner.model_copy(update={"size_class": len(records)})
        return real(self, request)

    patch.setattr(Client, "setup", setup)
