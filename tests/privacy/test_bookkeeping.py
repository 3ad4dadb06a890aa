"""Book-keeping against one example at a time, against Opacus' hooks, and on hostile gradients."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.grad_sample import GradSampleModule
from opacus.optimizers.optimizer_fast_gradient_clipping import DPOptimizerFastGradientClipping
from torch import nn

from fedaipc.errors import ModelError
from fedaipc.privacy import norms
from fedaipc.privacy.bookkeeping import BookKeepingModule
from fedaipc.privacy.norms import is_instantiated
from fedaipc.privacy.rounding import EXACT, Rounding

ROWS = 5
Loss = Callable[..., torch.Tensor]
WAYS: dict[str, dict[str, Any]] = {
    "kept": {"SMALL": 1 << 14},
    "by tokens": {"SMALL": -1, "KEPT": 0},
    "by tokens, a row at a time": {"SMALL": -1, "KEPT": 0, "SCRATCH": 1},
    "formed and summed in float32": {"SMALL": -1, "_NEAR": 0},
}


@pytest.fixture(params=WAYS)
def _way(request: pytest.FixtureRequest) -> Iterator[None]:
    with mock.patch.multiple(norms, **WAYS[request.param]):
        yield


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def one_at_a_time(module: nn.Module, inputs: tuple, loss: Loss) -> torch.Tensor:
    """Each example's whole gradient by autograd in float64, shape (B, parameters)."""
    slow = copy.deepcopy(module).double()
    rows = []
    for row in range(len(inputs[0])):
        slow.zero_grad()
        alone = tuple(v[row : row + 1] for v in inputs)
        loss(slow(*(v.double() if v.is_floating_point() else v for v in alone)), row).backward()
        rows.append(
            torch.cat([
                (torch.zeros_like(p) if p.grad is None else p.grad).flatten()
                for p in slow.parameters() if p.requires_grad
            ])
        )  # fmt: skip
    return torch.stack(rows)


# Sums in float32 with no room for it: only the numbers are compared here.
ROUGH = Rounding(records=1, terms=4096, room=EXACT.room, cancellation=EXACT.cancellation)


def weigh(seed: int) -> Loss:
    """A loss that is a random linear function of what comes out, different for each row."""

    def loss(outputs: torch.Tensor, row: int | None = None) -> torch.Tensor:
        shape = (ROWS, *outputs.shape[1:])
        weights = torch.randn(shape, generator=seeded(seed)).to(outputs.dtype)
        return (torch.tanh(outputs) * (weights if row is None else weights[row : row + 1])).sum()

    return loss


def backward(
    module: nn.Module, inputs: tuple, loss: Loss, reduction: Any = "sum"
) -> BookKeepingModule:
    module.train()
    wrapped = BookKeepingModule(module, loss_reduction=reduction, rounding=ROUGH)
    total = loss(wrapped(*inputs))
    (total / len(inputs[0]) if reduction == "mean" else total).backward()
    return wrapped


def sums(wrapped: BookKeepingModule, bound: float, rows: int | None = None) -> torch.Tensor:
    """One flat vector, in the order of the parameters."""
    found = {id(p): total for p, total in wrapped.clipped_sums(bound, rows)}
    trained = [p for p in wrapped._module.parameters() if p.requires_grad]
    assert {id(p) for p in trained} == set(found)
    assert all(found[id(p)].shape == p.shape for p in trained)
    wrapped.remove_hooks()
    wrapped.cleanup()
    return torch.cat([found[id(p)].double().flatten() for p in trained])


def clipped_slowly(rows: torch.Tensor, bound: float) -> torch.Tensor:
    factors = (bound * ROUGH.room / rows.norm(dim=1)).clamp(max=1)
    return factors @ rows


def assert_equal_to_autograd(module: nn.Module, inputs: tuple, seed: int = 0) -> None:
    loss = weigh(seed)
    gradients = one_at_a_time(module, inputs, loss)
    norms = gradients.norm(dim=1)
    for bound in (1e4, float(norms.median()), float(norms.min()) / 10):
        wrapped = backward(module, inputs, loss)
        found = wrapped.norms()
        assert torch.all(found >= norms * (1 - 1e-4) - 1e-6)  # but for what float32 rounds
        assert torch.all(found <= norms * 1.01 + 1e-6)
        expected = clipped_slowly(gradients, bound)
        got = sums(wrapped, bound)
        assert (got - expected).norm() <= 0.01 * max(1e-6, float(expected.norm()))
        # The bound itself is right to more digits than float32 shows.
        for row in range(ROWS):
            alone = sums(backward(module, inputs, lambda out, r=row: _only(loss, out, r)), bound)
            assert alone.norm() <= bound


def _only(loss: Loss, outputs: torch.Tensor, row: int) -> torch.Tensor:
    """The loss of one row; all others count as nothing."""
    keep = torch.zeros(len(outputs), *[1] * (outputs.dim() - 1))
    keep[row] = 1
    return loss(outputs * keep + (outputs * (1 - keep)).detach())


# Shapes and modules


class Net(nn.Module):
    """Embeddings, norms, linear layers of any width, used once or again and again."""

    def __init__(self, sizes: list[int], *, again: int, padding: bool, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.words = nn.Embedding(11, sizes[0], padding_idx=0 if padding else None)
            self.places = nn.Embedding(16, sizes[0])
            self.norm = nn.LayerNorm(sizes[0])
            self.layers = nn.ModuleList(
                nn.Linear(a, b, bias=b % 2 == 0) for a, b in pairwise(sizes)
            )
            self.square = nn.Linear(sizes[-1], sizes[-1])
        self.again = again

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        places = torch.arange(ids.shape[1]).expand(ids.shape)
        states = self.norm(self.words(ids) + self.places(places))
        for layer in self.layers:
            states = torch.tanh(layer(states))
        for _ in range(self.again):
            states = torch.tanh(self.square(states))
        return states


@pytest.mark.usefixtures("_way")
@settings(max_examples=15, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 12), min_size=2, max_size=4),
    tokens=st.integers(1, 9),
    again=st.integers(1, 3),
    padding=st.booleans(),
    frozen=st.sets(st.sampled_from(["words", "norm", "layers", "weight"]), max_size=2),
    seed=st.integers(0, 1000),
)
def test_random_shapes_equal_one_example_at_a_time(
    sizes: list[int], tokens: int, again: int, padding: bool, frozen: set[str], seed: int
) -> None:
    net = Net(sizes, again=again, padding=padding, seed=seed)
    for name, parameter in net.named_parameters():
        parameter.requires_grad = not any(part in name for part in frozen)
    ids = torch.randint(0, 11, (ROWS, tokens), generator=seeded(seed))
    assert_equal_to_autograd(net, (ids,), seed)


@pytest.mark.usefixtures("_way")
@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Linear(4, 3), (4,)),
        (nn.Linear(4, 3), (2, 3, 4)),
        (nn.Sequential(nn.Linear(6, 4), nn.RMSNorm(4), nn.Linear(4, 3)), (2, 6)),
        (nn.Sequential(nn.Conv1d(2, 4, 3), nn.GroupNorm(2, 4)), (2, 7)),
        (nn.Sequential(nn.Linear(6, 4), nn.PReLU(), nn.Linear(4, 2)), (6,)),
        (nn.LayerNorm((3, 4)), (2, 3, 4)),
        (nn.LayerNorm(4), (4,)),
    ],
    ids=str,
)
def test_other_layers_and_other_numbers_of_dimensions(module: nn.Module, shape: tuple) -> None:
    inputs = torch.randn(ROWS, *shape, generator=seeded(1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_equal_to_autograd(module, (inputs,))


@pytest.mark.usefixtures("_way")
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_it_equals_opacus_hooks_for_both_kinds_of_loss(reduction: Any) -> None:
    # Opacus' rule gives the padding id a gradient, which autograd does not.
    net: Any = Net([6, 7, 5], again=1, padding=False, seed=3)
    ids, loss, bound = torch.randint(0, 11, (ROWS, 6), generator=seeded(3)), weigh(3), 0.7
    hooks = GradSampleModule(net, loss_reduction=reduction)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        total = loss(hooks(ids))
        (total / ROWS if reduction == "mean" else total).backward()
    rows = torch.cat([p.grad_sample.flatten(1) for p in net.parameters()], 1).double()
    hooks.remove_hooks()
    hooks.cleanup()
    net.zero_grad()
    got = sums(backward(net, (ids,), loss, reduction), bound)
    assert (got - clipped_slowly(rows, bound)).norm() <= 1e-3 * got.norm()


@pytest.mark.usefixtures("_way")
def test_opacus_own_optimizer_takes_the_sums() -> None:
    net = Net([6, 7, 5], again=2, padding=True, seed=4)
    ids, loss, bound = torch.randint(0, 11, (ROWS, 6), generator=seeded(4)), weigh(4), 0.5
    gradients = one_at_a_time(net, (ids,), loss)
    optimizer = DPOptimizerFastGradientClipping(
        torch.optim.SGD(net.parameters(), lr=1.0),
        noise_multiplier=0.0, max_grad_norm=bound, expected_batch_size=2,
    )  # fmt: skip
    before = torch.cat([p.detach().flatten() for p in net.parameters()])
    wrapped = backward(net, (ids,), loss)
    for parameter, total in wrapped.clipped_sums(bound):
        parameter.grad = total.to(parameter.dtype)
    optimizer.step()
    moved = before - torch.cat([p.detach().flatten() for p in net.parameters()])
    expected = clipped_slowly(gradients, bound) / 2
    assert (moved - expected).norm() <= 0.01 * expected.norm()


@pytest.mark.usefixtures("_way")
def test_only_the_first_rows_count() -> None:
    net = Net([6, 5], again=1, padding=False, seed=5)
    ids, loss = torch.randint(0, 11, (ROWS, 4), generator=seeded(5)), weigh(5)
    rows = one_at_a_time(net, (ids,), loss)
    got = sums(backward(net, (ids,), loss), 0.3, rows=3)
    expected = clipped_slowly(rows[:3], 0.3)
    assert (got - expected).norm() <= 0.01 * expected.norm()


# Hostile gradients: what leaves is never longer than the bound


class Given(nn.Module):
    """The gradient of a row is what went in: for one, its whole gradient; else one per token."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(width, 1, bias=False) for width in widths)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        parts = rows.split([part.in_features for part in self.parts], -1)
        return torch.cat([m(p) for m, p in zip(self.parts, parts, strict=True)], -1)


def clipped_sum_of(
    rows: torch.Tensor, bound: float, widths: tuple, signs: Any = 1.0
) -> torch.Tensor:
    return sums(backward(Given(*widths), (rows,), lambda out, _=None: (out * signs).sum()), bound)


WIDTHS = (12, 5, 8)


@pytest.mark.usefixtures("_way")
@pytest.mark.parametrize("exponent", range(-30, 31, 5))
@pytest.mark.parametrize("clip", [1e-9, 0.5, 1e9])
def test_no_scale_of_gradient_contributes_more_than_the_clip_bound(
    exponent: int, clip: float
) -> None:
    rng = np.random.default_rng(exponent + 100)
    for kind in ("even", "one entry", "steep"):
        row = rng.normal(size=(1, sum(WIDTHS)))
        if kind == "one entry":
            row[:, 1:] = 0
        if kind == "steep":
            row *= 10.0 ** -np.arange(sum(WIDTHS))
        values = torch.from_numpy((row * 10.0**exponent).astype(np.float32))
        total = clipped_sum_of(values, clip, WIDTHS)
        assert torch.isfinite(total).all()
        assert total.norm() <= clip


@pytest.mark.usefixtures("_way")
@settings(max_examples=40, deadline=None)
@given(
    scale=st.floats(-30, 15),
    other=st.floats(-30, 15),
    remain=st.floats(-12, 0),
    tokens=st.integers(2, 40),
    bound=st.sampled_from([1e-9, 1e-3, 1.0, 1e6]),
    seed=st.integers(0, 99),
)
def test_tokens_that_cancel_each_other_do_not_pass_the_bound(
    scale: float, other: float, remain: float, tokens: int, bound: float, seed: int
) -> None:
    """|sum of G_t^T A_t| far below what its terms add up to: where float32 loses a norm."""
    rng = np.random.default_rng(seed)
    common, rest = rng.normal(size=16), rng.normal(size=(tokens, 16))
    rows = (10.0**scale * (common + 10.0**remain * rest)).astype(np.float32)[None]
    signs = rng.normal(size=tokens)
    signs = (10.0**other * (signs - signs.mean())).astype(np.float32)
    exact = (signs[:, None].astype(np.float64) * rows[0].astype(np.float64)).sum(0)
    total = clipped_sum_of(
        torch.from_numpy(rows), bound, (16,), torch.from_numpy(signs)[None, :, None]
    )
    assert total.norm() <= bound
    # What leaves is the direction of the true gradient, as far as float32 can tell.
    assert torch.isfinite(total).all()
    if norms.KEPT:
        return  # here what was formed, rounding included, is what is clipped and summed
    # Above, rounding is in the total too; the factor is safe for the true gradient as well.
    wrapped = backward(
        Given(16), (torch.from_numpy(rows),),
        lambda out, _=None: (out * torch.from_numpy(signs)[None, :, None]).sum(),
    )  # fmt: skip
    norm = float(wrapped.norms())
    wrapped.zero_grad()
    wrapped.remove_hooks()
    assert not math.isfinite(norm) or norm >= np.linalg.norm(exact) * (1 - 1e-3) - 1e-3 * bound


def test_gradients_whose_squares_vanish_beside_huge_inputs_do_not_pass_the_bound() -> None:
    """|G|^2 is 0 in float32, |A| |G| is a thousand times the bound."""
    rows = torch.full((1, 2, 16), 1e18)
    signs = torch.full((1, 2, 1), 1e-24)
    with mock.patch.multiple(norms, **WAYS["by tokens"]):
        total = clipped_sum_of(rows, 1e-9, (16,), signs)
    assert total.norm() <= 1e-9


@pytest.mark.parametrize("rest", [0.2, 0.01, 0.001])
def test_an_example_whose_tokens_cancel_is_scaled_down_further(rest: float) -> None:
    """Two tokens of length 1 that add up to `rest`: at most 16 C of what is added may cancel."""
    rows = torch.tensor([[[1.0, 0.0], [1.0, rest]]])
    signs = torch.tensor([[[1.0], [-1.0]]])
    with mock.patch.multiple(norms, **WAYS["by tokens"]):
        total = clipped_sum_of(rows, 1e-3, (2,), signs)
    expected = min(1.0, 16 * rest / 2)  # of the bound
    assert float(total.norm()) == pytest.approx(expected * 1e-3, rel=0.05)


@pytest.mark.usefixtures("_way")
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3e38])
def test_a_gradient_that_is_not_finite_contributes_nothing_at_all(value: float) -> None:
    rows = torch.randn(4, sum(WIDTHS), generator=seeded(0))
    hostile = rows.clone()
    hostile[2, [0, 7]] = value  # 3e38 is finite, its square in float32 is not
    left = clipped_sum_of(hostile, 0.5, WIDTHS)
    kept = rows[[0, 1, 3]].double()
    assert (left - clipped_slowly(kept, 0.5)).norm() <= 1e-3


@pytest.mark.parametrize("value", [1.03, 0.7, 0.0301])
def test_norms_of_millions_of_equal_values_are_not_too_small(value: float) -> None:
    """Torch's own float32 norm of such a row falls short by up to 0.9 %: the bound would break."""
    size = 6_000_000
    exact = float(np.float32(value)) ** 2 * size
    square = norms.squares(torch.full((1, size), value)).item()
    assert exact * (1 - 2**-12) <= square <= exact * (1 + 2**-12)


@pytest.mark.parametrize("size", [1, 1023, 1024, 1025, 3000])
def test_norms_by_blocks_equal_norms_in_float64(size: int) -> None:
    rows = torch.randn(5, size, generator=seeded(0))
    assert torch.allclose(norms.squares(rows), rows.double().square().sum(1), rtol=1e-6, atol=0)


def test_a_broken_norm_is_caught() -> None:
    """Without the error bound, cancelling tokens would pass for nothing."""

    def paired(a: torch.Tensor, g: torch.Tensor, terms: int) -> norms.Sizes:
        product = (a * g).sum((1, 2), dtype=torch.float64)
        return norms.Sizes(product.clamp(min=0.0), torch.zeros_like(product))

    rng = np.random.default_rng(0)
    worst = 0.0
    with mock.patch.multiple(norms, SMALL=-1, KEPT=0, paired=paired):
        for _ in range(20):
            rows = (1e3 * (rng.normal(size=16) + 1e-4 * rng.normal(size=(30, 16)))).astype("f4")
            signs = rng.normal(size=30)
            signs = (signs - signs.mean()).astype("f4")
            total = clipped_sum_of(
                torch.from_numpy(rows[None]), 1e-3, (16,), torch.from_numpy(signs)[None, :, None]
            )
            worst = max(worst, float(total.norm()))
    assert worst > 2e-3


# bfloat16


@pytest.mark.usefixtures("_way")
@settings(max_examples=10, deadline=None)
@given(tokens=st.integers(1, 9), seed=st.integers(0, 1000), bound=st.sampled_from([1e-3, 0.1]))
def test_under_autocast_no_example_passes_the_bound(tokens: int, seed: int, bound: float) -> None:
    net = Net([8, 6, 8], again=2, padding=True, seed=seed)
    ids, loss = torch.randint(0, 11, (ROWS, tokens), generator=seeded(seed)), weigh(seed)
    for row in range(ROWS):
        net.train()
        wrapped = BookKeepingModule(net)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outputs = wrapped(ids)
        _only(loss, outputs.float(), row).backward()
        assert sums(wrapped, bound).norm() <= bound


def test_under_autocast_the_sum_is_that_of_float32_within_bfloat16() -> None:
    net = Net([16, 24, 16], again=1, padding=True, seed=1)
    ids, loss = torch.randint(1, 11, (ROWS, 7), generator=seeded(1)), weigh(1)
    plain = sums(backward(net, (ids,), loss), 0.5)
    wrapped = BookKeepingModule(net)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = wrapped(ids)
    loss(outputs.float()).backward()
    assert (sums(wrapped, 0.5) - plain).norm() <= 0.05 * plain.norm()


# What it refuses, and what it leaves behind


def test_a_parameter_that_two_layers_share_is_refused() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    net[2].weight = net[0].weight
    with pytest.raises(ModelError, match="0 and 2 share a parameter"):
        BookKeepingModule(net)
    net[0].weight.requires_grad = False
    BookKeepingModule(net).remove_hooks()  # frozen, it may be tied


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm1d(4),
        nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)),
        nn.Embedding(5, 4, max_norm=1.0),
        nn.Embedding(5, 4, scale_grad_by_freq=True),
    ],
    ids=str,
)
def test_layers_that_mix_examples_are_refused(layer: nn.Module) -> None:
    with pytest.raises(ModelError, match="mixes examples"):
        BookKeepingModule(layer)


def test_an_input_with_one_row_for_all_examples_is_refused() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.places = nn.Embedding(9, 4), nn.Embedding(9, 4)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.words(ids) + self.places(torch.arange(ids.shape[1])[None])

    wrapped = backward(Shared(), (torch.ones(ROWS, 3, dtype=torch.long),), weigh(0))
    with pytest.raises(ModelError, match="one row per example"):
        list(wrapped.clipped_sums(1.0))


def test_a_trained_layer_that_was_not_used_stops_the_step() -> None:
    net = nn.ModuleDict({"used": nn.Linear(4, 2), "idle": nn.Linear(4, 2)})
    net.train()
    wrapped = BookKeepingModule(net)
    net["used"](torch.randn(ROWS, 4, generator=seeded(0))).sum().backward()
    with pytest.raises(ModelError, match="idle: a trained layer got no per-example gradients"):
        list(wrapped.clipped_sums(1.0))


def test_gradients_that_nobody_fetched_are_not_mixed_with_the_next() -> None:
    inputs = torch.randn(ROWS, 4, generator=seeded(0))
    wrapped = backward(nn.Linear(4, 2), (inputs,), weigh(0))
    with pytest.raises(ModelError, match="batch before"):
        wrapped(inputs)
    wrapped.zero_grad()
    wrapped(inputs)


@pytest.mark.usefixtures("_way")
def test_a_second_backward_pass_is_refused() -> None:
    """Its gradients would be summed beside the first's, and the two norms only added in squares."""
    wrapped = BookKeepingModule(nn.Linear(4, 2).train())
    outputs = wrapped(torch.randn(ROWS, 4, generator=seeded(0)))
    outputs.sum().backward(retain_graph=True)
    with pytest.raises(ModelError, match="second backward pass"):
        outputs.sum().backward()


def test_an_input_changed_in_place_is_noticed() -> None:
    inputs = torch.randn(ROWS, 4, generator=seeded(0))
    wrapped = BookKeepingModule(nn.Linear(4, 2).train())
    outputs = wrapped(inputs)
    inputs += 1
    with pytest.raises(ModelError, match="changed in place"):
        outputs.sum().backward()


def test_a_lower_precision_of_matrix_products_is_refused() -> None:
    wrapped = BookKeepingModule(nn.Linear(4, 2).train())
    inputs = torch.randn(ROWS, 4, generator=seeded(0))
    torch.set_float32_matmul_precision("high")
    try:
        with pytest.raises(ModelError, match="clip bound"):
            wrapped(inputs)
    finally:
        torch.set_float32_matmul_precision("highest")
    matmul: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        with pytest.raises(ModelError, match="clip bound"):
            wrapped(inputs)
    finally:
        matmul.fp32_precision = before
    wrapped(inputs)


def test_autocast_around_the_backward_pass_is_refused() -> None:
    wrapped = BookKeepingModule(nn.Linear(4, 2).train())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = wrapped(torch.randn(ROWS, 4, generator=seeded(0)))
        with pytest.raises(ModelError, match="leave autocast"):
            outputs.float().sum().backward()
    outputs.float().sum().backward()
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.raises(ModelError, match="leave autocast"),
    ):
        list(wrapped.clipped_sums(1.0))


def test_a_layer_with_several_outputs_is_refused() -> None:
    wrapped = BookKeepingModule(nn.GRU(4, 3).train())
    with pytest.raises(ModelError, match="more than one tensor"):
        wrapped(torch.randn(ROWS, 2, 4, generator=seeded(0)))


def test_the_module_is_as_it_was_afterwards() -> None:
    net = Net([4, 3], again=1, padding=False, seed=0)
    net.norm.requires_grad_(requires_grad=False)
    trained = {name for name, p in net.named_parameters() if p.requires_grad}
    wrapped = backward(net, (torch.ones(ROWS, 3, dtype=torch.long),), weigh(0))
    assert all(p.grad is None for p in net.parameters())
    assert wrapped.to_standard_module() is net
    assert {name for name, p in net.named_parameters() if p.requires_grad} == trained
    assert not any(m._forward_hooks for m in net.modules())
    weigh(0)(net(torch.ones(ROWS, 3, dtype=torch.long))).backward()  # trains as ever
    assert net.square.weight.grad is not None


def test_without_gradients_a_forward_pass_notes_nothing() -> None:
    wrapped = BookKeepingModule(nn.Linear(4, 2).train())
    with torch.no_grad():
        wrapped(torch.zeros(ROWS, 4))
    wrapped.eval()
    wrapped(torch.zeros(ROWS, 4))
    assert not any(layer.used for layer in wrapped._layers)


def test_memory_of_per_example_gradients_is_bounded() -> None:
    for rows in (1, 16, 64, 4096):
        for tokens in (1, 32, 512):
            for width, outputs in ((384, 384), (768, 3072), (384, 30522)):
                if is_instantiated(rows, tokens, width, outputs):
                    assert 4 * rows * width * outputs <= norms.KEPT


def test_products_that_overflow_below_nothing_leave_the_example_out() -> None:
    """Off the diagonal -inf, on it just finite: a sum of -inf is no reason to call it small."""
    a = torch.tensor([[[1.0, -1.0], [-1.0, 1.0]]])
    g = torch.tensor([[[3e38, math.inf], [math.inf, 3e38]]])
    assert norms.paired(a, g, 16).square.isinf().all()


# Sums in float64


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("padding", [False, True])
def test_exact_sums_are_those_of_float64(way: str, padding: bool) -> None:
    """Many examples that all but cancel: float32 keeps few digits of their sum, float64 all."""
    rows, gap = 4096, 2.0**-20
    with mock.patch.multiple(norms, **WAYS[way]):
        net = nn.Embedding(3, 8, padding_idx=0 if padding else None)
        ids = torch.ones(rows, 4, dtype=torch.long)
        signs = torch.where(torch.arange(rows) % 2 == 0, 1.0, -(1.0 + gap)).view(-1, 1, 1)
        found = {}
        for exact in (False, True):
            net.train()
            wrapped = BookKeepingModule(net, rounding=EXACT if exact else ROUGH)
            (wrapped(ids) * signs).sum().backward()
            found[exact] = dict(wrapped.clipped_sums(1e6))[net.weight].double()[1, 0].item()
            wrapped.remove_hooks()
    exactly = -rows / 2 * gap * 4
    assert found[True] == pytest.approx(exactly, rel=1e-9)


@pytest.mark.usefixtures("_way")
def test_exact_sums_of_every_kind_of_layer_are_in_float64_and_equal_the_others() -> None:
    ids = torch.randint(1, 12, (ROWS, 6), generator=seeded(3))
    found = {}
    for exact in (False, True):
        net = Net([4, 12], again=1, padding=False, seed=0)
        net.train()
        wrapped = BookKeepingModule(net, rounding=EXACT if exact else ROUGH)
        weigh(0)(wrapped(ids % 4)).backward()
        found[exact] = [total for _, total in wrapped.clipped_sums(0.5)]
        wrapped.remove_hooks()
    assert {total.dtype for total in found[True]} == {torch.float64}
    for rough, fine in zip(found[False], found[True], strict=True):
        assert torch.allclose(rough.double(), fine, atol=1e-6)
