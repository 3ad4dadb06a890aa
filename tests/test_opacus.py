"""Our clipping in other people's Opacus scripts: the same steps, the same accounting."""

from __future__ import annotations

import copy
from typing import Any

import opacus
import pytest
import torch
from opacus.utils.batch_memory_manager import BatchMemoryManager
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fedaipc.opacus
from fedaipc.errors import ModelError

RECORDS = 24


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 3))


def loader(batch: int = 8) -> DataLoader[Any]:
    torch.manual_seed(1)
    data = TensorDataset(torch.randn(RECORDS, 6), torch.randint(0, 3, (RECORDS,)))
    return DataLoader(data, batch_size=batch)


def trained(
    engine: Any, *, memory: int | None = None, reduction: str = "mean", **settings: Any
) -> tuple[torch.Tensor, Any]:
    """All values after an epoch, and the engine."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    model, optimizer, batches = engine.make_private(
        module=model, optimizer=optimizer, data_loader=loader(), max_grad_norm=0.2,
        loss_reduction=reduction, **settings,
    )  # fmt: skip
    criterion = nn.CrossEntropyLoss(reduction=reduction)

    def epoch(parts: Any) -> None:
        for inputs, truth in parts:
            optimizer.zero_grad()
            criterion(model(inputs), truth).backward()
            optimizer.step()

    if memory is None:
        epoch(batches)
    else:
        with BatchMemoryManager(
            data_loader=batches, max_physical_batch_size=memory, optimizer=optimizer
        ) as parts:
            epoch(parts)
    plain = model.to_standard_module()
    return torch.cat([p.detach().flatten() for p in plain.parameters()]), engine


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("memory", [None, 3])
@pytest.mark.filterwarnings("ignore")
def test_steps_are_those_of_opacus_hooks(reduction: str, memory: int | None) -> None:
    same: dict[str, Any] = {
        "poisson_sampling": False,
        "noise_multiplier": 0.0,
        "reduction": reduction,
    }
    ours, _ = trained(fedaipc.opacus.PrivacyEngine(), memory=memory, **same)
    theirs, _ = trained(opacus.PrivacyEngine(), memory=memory, **same)
    start = torch.cat([p.detach().flatten() for p in network().parameters()])
    # Ours clips to a bound that is smaller by 2^-8, so that rounding has room.
    assert torch.allclose(ours - start, theirs - start, rtol=0.01, atol=1e-4)
    assert (ours - start).abs().max() > 0.005


@pytest.mark.filterwarnings("ignore")
def test_noise_is_opacus_own_and_so_is_the_accounting() -> None:
    same: dict[str, Any] = {"poisson_sampling": False, "noise_multiplier": 1.5}
    found = []
    for engine in (fedaipc.opacus.PrivacyEngine(), opacus.PrivacyEngine()):
        noise = torch.Generator().manual_seed(5)
        values, done = trained(engine, noise_generator=noise, **copy.copy(same))
        found.append((values, done.get_epsilon(1e-5)))
    assert found[0][1] == found[1][1] > 0
    assert torch.allclose(found[0][0], found[1][0], atol=1e-2)


@pytest.mark.filterwarnings("ignore")
def test_an_empty_poisson_sample_is_a_step_of_noise() -> None:
    engine = fedaipc.opacus.PrivacyEngine()
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model, optimizer, _ = engine.make_private(
        module=model, optimizer=optimizer, data_loader=loader(), max_grad_norm=1.0,
        noise_multiplier=2.0, loss_reduction="sum",
    )  # fmt: skip
    before = torch.cat([p.detach().flatten() for p in model.parameters()])
    loss = nn.CrossEntropyLoss(reduction="sum")
    loss(model(torch.zeros(0, 6)), torch.zeros(0, dtype=torch.long)).backward()
    optimizer.step()
    moved = torch.cat([p.detach().flatten() for p in model.parameters()]) - before
    assert 1.6 < moved.std() < 2.4
    assert torch.isfinite(moved).all()


@pytest.mark.filterwarnings("ignore")
def test_what_it_cannot_do_is_refused() -> None:
    engine = fedaipc.opacus.PrivacyEngine()
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    known: dict[str, Any] = {
        "module": model, "optimizer": optimizer, "data_loader": loader(), "noise_multiplier": 1.0,
    }  # fmt: skip
    with pytest.raises(ModelError, match="one row for each example"):
        engine.make_private(**known, max_grad_norm=1.0, batch_first=False)
    with pytest.raises(ModelError, match="whole gradients"):
        engine.make_private(**known, max_grad_norm=[1.0] * 6, clipping="per_layer")


@pytest.mark.filterwarnings("ignore:Secure RNG turned off")
@pytest.mark.filterwarnings("ignore:Full backward hook")
def test_a_forgotten_zero_grad_is_refused_as_opacus_refuses_it() -> None:
    """Else a second step would release the first one's sum again."""
    plain = network()
    model, optimizer, batches = fedaipc.opacus.PrivacyEngine().make_private(
        module=plain, optimizer=torch.optim.SGD(plain.parameters(), lr=0.3),
        data_loader=loader(), noise_multiplier=1.0, max_grad_norm=0.2, poisson_sampling=False,
    )  # fmt: skip
    inputs, truth = next(iter(batches))
    for step in range(2):
        nn.functional.cross_entropy(model(inputs), truth).backward()
        if step:
            with pytest.raises(ValueError, match="zero_grad"):
                optimizer.step()
        else:
            optimizer.step()


def test_an_empty_sample_passes_a_wide_layer() -> None:
    """Its norms come from products of tokens, of which there are none."""
    wide = nn.Sequential(nn.Linear(200, 300), nn.ReLU(), nn.Linear(300, 2))
    module = fedaipc.opacus.BookKeepingModule(wide)
    nn.functional.cross_entropy(
        module(torch.zeros(0, 200)), torch.zeros(0, dtype=torch.long), reduction="sum"
    ).backward()
    sums = dict(module.clipped_sums(1.0))
    assert len(sums) == 4
    assert all(torch.equal(total, torch.zeros_like(total)) for total in sums.values())


def test_batch_norm_is_refused_wherever_it_stands() -> None:
    frozen = nn.BatchNorm1d(16)
    for parameter in frozen.parameters():
        parameter.requires_grad = False
    with pytest.raises(ModelError, match="batch norm mixes examples"):
        fedaipc.opacus.BookKeepingModule(nn.Sequential(nn.Linear(6, 16), frozen, nn.Linear(16, 3)))
