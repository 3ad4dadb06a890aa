"""`fedaipc doctor`: what this PC can do, and what a job would take and cost here."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from fedaipc.cli.config import Overrides
from fedaipc.cli.output import AsJson, make_console, say_json
from fedaipc.cli.source import By, Label, Pcs, Source, Text, read_settings
from fedaipc.report.table import Table

if TYPE_CHECKING:
    from fedaipc.config import Settings
    from fedaipc.doctor.forecast import Forecast
    from fedaipc.doctor.machine import Machine
    from fedaipc.doctor.probe import Speed


def doctor(
    source: Source = None,
    text: Text = None,
    label: Label = None,
    by: By = None,
    pcs: Pcs = None,
    overrides: Overrides = None,
    prices: Annotated[
        Path | None, typer.Option(help="price table; a copy of fedaipc/doctor/prices.toml, edited")
    ] = None,
    save: Annotated[
        bool, typer.Option("--save", help="save the result for later jobs with this model")
    ] = False,
    folder: Annotated[
        Path | None,
        typer.Option(help="of an enrolled PC: take its texts and base; --save into its owner.toml"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure this PC, and say what a job would take and cost here and on a rented GPU.

    Takes about a minute. Example: fedaipc doctor simulations/demo.toml
    """
    from fedaipc.data.prepare import prepare_simulation
    from fedaipc.doctor.forecast import forecast, read_prices
    from fedaipc.doctor.machine import PowerMeter, this_machine
    from fedaipc.doctor.probe import probe
    from fedaipc.doctor.saved import save as keep
    from fedaipc.doctor.saved import save_for_pc as keep_for_pc
    from fedaipc.model.classifier import Classifier

    settings = read_settings(source, overrides, {}, text=text, label=label, by=by, pcs=pcs)
    if folder is not None:
        settings = _of_pc(settings, folder)
    table = read_prices(prices)
    machine = this_machine()
    data = prepare_simulation(settings.data, settings.federation.clients)
    with make_console(stderr=True).status("measuring") as status:
        meter = PowerMeter()
        speeds = probe(settings, data.train.texts, status.update)
        watts = meter.watts()
    own = next(speed for speed in speeds if speed.precision == settings.speed.precision)
    saved = None
    if save:
        saved = (
            keep(settings, machine.processor, own)
            if folder is None
            else keep_for_pc(folder, speeds, own)
        )
    parameters = Classifier(settings.model, data.labels).layout.size
    future = forecast(
        settings,
        own,
        records=len(data.train),
        held_back=len(data.validation) + len(data.test),
        parameters=parameters,
        prices=table,
        watts=watts,
    )
    if as_json:
        report: dict[str, Any] = {
            "machine": asdict(machine),
            "speeds": [asdict(speed) for speed in speeds],
            "speed_up": _speed_up(speeds),
            "parameters": parameters,
            "forecast": asdict(future),
        }
        say_json(report)
        return
    console = make_console(highlight=False)
    _show_machine(console, machine)
    _show_speeds(console, speeds)
    warm_up = settings.warm_up.source is not None
    _show_forecast(console, future, settings.federation.clients, warm_up=warm_up)
    if saved is not None:
        console.print(f"saved in {saved}", markup=False)


def _of_pc(settings: Settings, folder: Path) -> Settings:
    """The job as the PC in `folder` would do it, except where [speed] is given here."""
    from fedaipc.client.client import OWNER_FILE
    from fedaipc.config import load_owner

    owner = load_owner(folder / OWNER_FILE)
    said = {name: getattr(settings.speed, name) for name in settings.speed.model_fields_set}
    data = {
        "source": owner.source, "text_column": owner.text_column,
        "label_column": owner.label_column, "partition": "iid", "client_column": None,
        "labels": None,
    }  # fmt: skip
    return settings.model_copy(
        update={
            "model": settings.model.model_copy(update={"base": owner.base}),
            "data": settings.data.model_copy(update=data),
            "warm_up": settings.warm_up.model_copy(update={"source": None}),
            "speed": owner.speed.model_copy(update=said),
        }
    )


def _speed_up(speeds: list[Speed]) -> float | None:
    """R = t_CPU / t_GPU of private training: None without a GPU."""
    cpu = [speed.private for speed in speeds if speed.device == "cpu"]
    other = [speed.private for speed in speeds if speed.device != "cpu"]
    return max(other) / max(cpu) if cpu and other else None


def _show_machine(console: Console, machine: Machine) -> None:
    gib = 2**30
    console.print(f"processor   {machine.processor}, {machine.cores} cores", markup=False)
    console.print(f"features    {', '.join(machine.features)}")
    console.print(
        f"memory      {machine.memory_bytes / gib:.1f} GiB, {machine.free_bytes / gib:.1f} free"
    )
    console.print(f"GPU         {'; '.join(machine.devices) or 'none that torch can use'}")
    if machine.idle:
        console.print(f"not used    {', '.join(machine.idle)}: torch cannot train on it")


def _show_speeds(console: Console, speeds: list[Speed]) -> None:
    rows = [
        (
            speed.device, speed.precision, speed.threads, speed.micro_batch,
            "" if speed.frozen is None else f"{speed.frozen:,.0f}",
            f"{speed.ordinary:,.0f}", f"{speed.private:,.0f}",
        )
        for speed in speeds
    ]  # fmt: skip
    columns = ("device", "precision", "threads", "micro-batch", "frozen", "ordinary", "private")
    console.print()
    console.print("texts per second (frozen layers once per text; then a step of training)")
    console.print(Table(columns, rows, words=(0, 1)))
    best = speeds[0]
    console.print(
        f"fastest: --set speed.device={best.device.split(':')[0]} "
        f"--set speed.precision={best.precision} --set speed.threads={best.threads} "
        f"--set speed.micro_batch={best.micro_batch}",
        markup=False,
    )
    console.print(
        "private training works on this PC: results do not depend on a record's place in the batch"
    )
    if not any(speed.precision == "bfloat16" for speed in speeds):
        console.print(
            "bfloat16: not measured, this processor has no instructions for it; "
            "--set speed.precision=bfloat16 measures it"
        )
    if (ratio := _speed_up(speeds)) is not None:
        console.print(f"R = t_CPU / t_GPU = {ratio:.1f}")


def _show_forecast(console: Console, future: Forecast, pcs: int, *, warm_up: bool) -> None:
    source = "measured" if future.watts_measured else "from the price table"
    console.print()
    console.print(
        f"this job, all {pcs} PCs simulated here: {future.minutes:,.1f} minutes, "
        f"{future.watt_hours:,.1f} Wh at {future.watts:.0f} W ({source}), ${future.dollars:.4f}"
    )
    console.print(f"on a fleet: {future.fleet_minutes:,.2f} minutes of each PC like this one")
    console.print(
        f"traffic: {future.bytes_up / 2**20:,.1f} MiB up, {future.bytes_down / 2**20:,.1f} MiB down"
    )
    if warm_up:
        console.print("the warm-up on public texts, once, is not in these figures")
    for gpu in future.gpus:
        line = f"GPU {gpu.name}: "
        if gpu.break_even is None:
            line += "a rented GPU is never cheaper: this PC's hours cost nothing"
        else:
            line += f"cheaper than this PC's hours if R is above {gpu.break_even:,.0f}"
        if gpu.dollars is not None and gpu.hours is not None:
            line += f"; R = {gpu.speed_up:.1f}, {gpu.hours * 60:,.1f} minutes, ${gpu.dollars:.4f}"
        console.print(line, markup=False)
