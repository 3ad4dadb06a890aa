"""A fleet plan as tables: medians of the runs that finished, and a dash where none did."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedaipc.report.formatting import UNKNOWN, duration_text, size_text
from fedaipc.report.table import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fedaipc.planning.forecast import FleetForecast, Spread


def time_table(fleets: Sequence[FleetForecast]) -> Table:
    """Updates, void rounds and wall-clock time of each fleet."""
    columns = ("PCs", "updates", "void", "round", "run", "5 %", "95 %")
    rows = []
    for one in fleets:
        run = one.run_seconds
        low, high = (None, None) if run is None else (run.low, run.high)
        rows.append(
            (
                f"{one.clients:,}",
                _number(one.arrived),
                _number(one.void_rounds),
                duration_text(_median(one.round_seconds)),
                duration_text(_median(run)),
                duration_text(low),
                duration_text(high),
            )
        )
    return Table(columns, rows, words=())


def cost_table(fleets: Sequence[FleetForecast]) -> Table:
    """Bytes, energy and cost of each fleet."""
    columns = ("PCs", "a PC, up", "down", "server, run", "energy, run", "cost, run", "cost, round")
    rows = [
        (
            f"{one.clients:,}",
            size_text(one.bytes_up),
            size_text(one.bytes_down),
            size_text(_median(one.server_bytes)),
            UNKNOWN if one.watt_hours is None else f"{one.watt_hours.median / 1000:,.3g} kWh",
            _money(_median(one.dollars)),
            _money(one.round_dollars),
        )
        for one in fleets
    ]
    return Table(columns, rows, words=())


def gpu_table(fleets: Sequence[FleetForecast]) -> Table:
    """Each fleet beside each GPU."""
    columns = (
        "PCs", "GPU", "R", "GPU, run", "fleet / GPU, time", "GPU, cost", "fleet / GPU, cost",
        "break-even R",
    )  # fmt: skip
    rows = [
        (
            f"{one.clients:,}",
            gpu.name,
            _ratio(gpu.speed_up),
            duration_text(None if gpu.hours is None else 3600 * gpu.hours),
            _ratio(gpu.time_ratio),
            _money(gpu.dollars),
            _ratio(gpu.cost_ratio),
            _ratio(gpu.break_even),
        )
        for one in fleets
        for gpu in one.gpus
    ]
    return Table(columns, rows, words=(1,))


def _number(spread: Spread | None) -> str:
    return UNKNOWN if spread is None else f"{spread.median:,.0f}"


def _median(spread: Spread | None) -> float | None:
    return None if spread is None else spread.median


def _money(dollars: float | None) -> str:
    return UNKNOWN if dollars is None else f"${dollars:,.4g}" if dollars < 1 else f"${dollars:,.2f}"


def _ratio(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"
