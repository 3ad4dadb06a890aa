#!/usr/bin/env python3
"""Write the figures of README.md and of pages in docs/; --check only compares.

They come from simulations/results/*.json and scripts/bench/results/*.json. Run it with
.venv/bin/python.
"""

from __future__ import annotations

import io
import json
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from fedaipc.config import load_settings
from fedaipc.privacy.budget import local_epsilon
from fedaipc.protocol.job import job_schedule
from fedaipc.report.formatting import at_least, at_most
from fedaipc.report.plot_style import BLUE, ORANGE, drawing, figure_bytes, new_axes, put_legend
from fedaipc.report.run_tables import summary
from fedaipc.report.table import Table
from fedaipc.results import Results

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "simulations" / "results"
DEMO = ROOT / "simulations" / "demo.toml"
BENCH = ROOT / "scripts" / "bench" / "results"
ORDER = (
    "public-only", "alone-by-domain", "alone-iid", "central",
    "federated", "private-8", "private-3", "private-1",
    "federated-iid", "private-8-iid", "private-3-iid", "private-1-iid",
    "private-8-bfloat16", "cold-open", "cold-8",
)  # fmt: skip
CLIENTS_PLOT = ROOT / "docs" / "images" / "clients.svg"
SHORT = ("public-only", "central", "federated")  # of the README
SHOWN = ("privacy", "noise", "updates", "test accuracy", "traffic", "time")


def main() -> None:
    parts = {
        "README.md": {
            "results": noise_table,
            "demo": lambda: f"```\n{demo(SHOWN)}\n```",
            "audit": audit_line,
        },
        "docs/tutorials/first-run.md": {"demo": lambda: f"```\n{demo()}\n```"},
        "docs/tutorials/choose-a-budget.md": {"budget": budget},
        "docs/tutorials/attack-your-run.md": {"audit": audit},
        "docs/how-to/lab.md": {"broken": broken_builds},
        "docs/explanation/secure-aggregation.md": {"secagg": costs},
        "docs/how-to/simulate-many.md": {
            "simulation": simulations,
            "simulators": simulators,
        },
        "docs/how-to/plan-a-fleet.md": {"model": fleet_model},
        "docs/explanation/speed.md": {"clipping": clipping},
        "docs/how-to/operator.md": {"fleet": fleet},
        "docs/explanation/recipe.md": {
            "demo": lambda: f"```\n{demo()}\n```",
            "results": table,
            "defaults": defaults,
        },
        "docs/explanation/numerics.md": {"accountants": accountants},
        "docs/explanation/distributed-noise.md": {"study": noise_study},
        "docs/explanation/whole-clients.md": {"clients": many_clients},
    }
    for name, found in parts.items():
        path = ROOT / name
        content = path.read_text(encoding="utf-8")
        for mark, make in found.items():
            content = between(content, mark, make())
        if "--check" not in sys.argv:
            path.write_text(content, encoding="utf-8")
        elif content != path.read_text(encoding="utf-8"):
            sys.exit(f"{path.name} differs from the results; run scripts/readme_table.py")
    plot = figure_bytes(clients_figure(), CLIENTS_PLOT.suffix, CLIENTS_PLOT.stem)
    if "--check" not in sys.argv:
        CLIENTS_PLOT.write_bytes(plot)
    elif plot != CLIENTS_PLOT.read_bytes():
        sys.exit(f"{CLIENTS_PLOT.name} differs from the results; run scripts/readme_table.py")


def between(text: str, name: str, content: str) -> str:
    """`text` with what stands between the two marks of `name` replaced."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n{content}\n{end}{after}"


def table(claims: Sequence[str] = ORDER) -> str:
    """A row per claim: mean and standard deviation over the seeds."""
    rows = []
    for claim in claims:
        result = json.loads((RESULTS / f"{claim}.json").read_text(encoding="utf-8"))
        privacy = result["runs"][0].get("privacy")
        promise = "none"
        if privacy is not None and privacy["planned_epsilon"] is not None:
            spent = max(run["epsilon_charged"] for run in result["runs"])
            promise = (
                f"epsilon {at_most(spent, 2)}, delta {privacy['schedule']['mechanism']['delta']:g}"
            )
        accuracy = f"{result['test_accuracy_mean']:.3f} ± {result['test_accuracy_deviation']:.3f}"
        rows.append((result["what"], promise, accuracy, f"{result['test_macro_f1_mean']:.3f}"))
    return Table(("what", "privacy", "test accuracy", "macro-F1"), rows).to_markdown()


def noise_table() -> str:
    """What is trained, where the noise sits, both promises: without privacy, then by epsilon."""
    rows = []
    for claim in SHORT:
        result = json.loads((RESULTS / f"{claim}.json").read_text(encoding="utf-8"))
        accuracy = f"{result['test_accuracy_mean']:.3f} ± {result['test_accuracy_deviation']:.3f}"
        trained = "-" if claim == "public-only" else "head"
        rows.append((result["what"], trained, "none", "-", "-", accuracy))
    for epsilon in (8, 3, 1):
        for noise in ("local", "distributed"):
            (point,) = (
                point for point in _lab("noise")["points"]
                if point["values"]["privacy.epsilon"] == epsilon
                and point["values"]["privacy.noise"] == noise
                and "aggregation.threshold" not in point["values"]
            )  # fmt: skip
            own = at_most(_own_epsilon(point["values"]), 2)
            accuracy = f"{point['test_mean']:.3f} ± {point['test_deviation']:.3f}"
            promised = at_most(point["epsilon"], 2)
            rows.append(("20 PCs", "head", noise, promised, own, accuracy))
    columns = ("what", "trained in private", "noise", "epsilon of sums and models",
               "epsilon of one PC's own updates", "test accuracy")  # fmt: skip
    return Table(columns, rows).to_markdown()


def noise_study() -> str:
    """Test accuracy by epsilon and by where the noise sits."""
    points = _lab("noise")["points"]
    found: dict[float, dict[str, str]] = {}
    for point in points:
        values = point["values"]
        all_answer = "aggregation.threshold" in values
        kind = "nearly central" if all_answer else values["privacy.noise"]
        found.setdefault(values["privacy.epsilon"], {})[kind] = (
            f"{point['test_mean']:.3f} ± {point['test_deviation']:.3f}"
        )
    rows = [
        (f"{epsilon:g}", by["local"], by["distributed"], by["nearly central"])
        for epsilon, by in found.items()
    ]
    columns = ("epsilon", "local: 4.5 times central", "distributed, any 12 of 20: 1.29 times",
               "distributed, any 19 of 20: 1.03 times")  # fmt: skip
    cost = json.loads((BENCH / "noise_demo.json").read_text(encoding="utf-8"))
    line = (
        f"The demo takes {cost['median_ratio']:.2f} times as long with distributed noise as with "
        f"local noise (median of {len(cost['ratios'])} pairs, {min(cost['ratios']):.2f} to "
        f"{max(cost['ratios']):.2f})."
    )
    return f"{Table(columns, rows).to_markdown()}\n\n{line}"


def _by_clients() -> dict[tuple[str, str, float], dict[int, tuple[float, float]]]:
    """Test accuracy and seconds by number of clients, for each unit, place of noise and epsilon."""
    found: dict[tuple[str, str, float], dict[int, tuple[float, float]]] = {}
    for cell in _lab("clients")["cells"]:
        values = cell["values"]
        epsilon = float(values["privacy.epsilon"])
        unit, noise = values.get("privacy.unit", "-"), values.get("privacy.noise", "none")
        one = cell["test_accuracy"], cell["seconds"]
        found.setdefault((unit, noise, epsilon), {})[cell["pcs"]] = one
    return found


def many_clients() -> str:
    """Test accuracy by number of clients, at equal texts in all."""
    found = _by_clients()
    counts = sorted({count for by in found.values() for count in by})
    rows = []
    for (unit, noise, epsilon), by in sorted(
        found.items(), key=lambda one: (one[0][0], one[0][1], -one[0][2])
    ):
        shown = "not private" if epsilon == float("inf") else f"{epsilon:g}"
        cells = (f"{by[count][0]:.3f}" if count in by else "" for count in counts)
        rows.append((unit, noise, shown, *cells))
    columns = ("epsilon per", "noise", "epsilon", *(f"{count:,} clients" for count in counts))
    times = found["client", "distributed", 8.0]
    seconds = ", ".join(f"{times[count][1]:,.0f} s with {count:,}" for count in sorted(times))
    return (
        f"{Table(columns, rows).to_markdown()}\n\nThe runs for whole clients with distributed "
        f"noise at epsilon 8 took {seconds} clients."
    )


@drawing()
def clients_figure() -> Figure:
    """Test accuracy by number of clients, at epsilon 8."""
    figure, axes = new_axes(
        x="clients (the same texts in all); epsilon per client or record",
        y="test accuracy",
        height=3.6,
    )
    colours = {"client": BLUE, "record": ORANGE}
    for (unit, noise, epsilon), by in sorted(_by_clients().items()):
        if epsilon == 8:
            counts = sorted(by)
            axes.plot(
                counts, [by[count][0] for count in counts], label=f"{unit}, {noise}",
                color=colours[unit], linestyle="-" if noise == "distributed" else ":",
                marker="o" if noise == "distributed" else "s",
            )  # fmt: skip
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    put_legend(figure)
    return figure


def _own_epsilon(values: dict[str, Any]) -> float:
    """Of all rounds of such a job, against whoever reads one PC's own updates."""
    settings = load_settings(DEMO, [f"{key}={json.dumps(value)}" for key, value in values.items()])
    once = job_schedule(settings)
    return local_epsilon([once.times(settings.rounds)], once.mechanism.delta)


def _lab(name: str) -> Any:
    file = dict.fromkeys(("budget", "noise", "clients"), "sweep").get(name, name)
    return json.loads((RESULTS / name / f"{file}.json").read_text(encoding="utf-8"))


def budget() -> str:
    """Accuracy by epsilon and partition, as swept."""
    points = _lab("budget")["points"]
    accuracy = {
        (p["values"]["privacy.epsilon"], p["values"]["data.partition"]):
            f"{p['test_mean']:.3f} ± {p['test_deviation']:.3f}"
        for p in points
    }  # fmt: skip
    rows = []
    for epsilon in dict.fromkeys(p["values"]["privacy.epsilon"] for p in points):
        name = "not private" if epsilon == "inf" else f"{epsilon:g}"
        rows.append((name, accuracy[epsilon, "column"], accuracy[epsilon, "iid"]))
    return Table(("epsilon", "one domain on each PC", "mixed"), rows).to_markdown()


def audit() -> str:
    """Promise and attack, as audited."""
    found = _lab("audit")
    rows = []
    for one in found["settings"]:
        bound, promised = one["canary"]["bound"], one["canary"]["promised"]
        name = "not private" if one["epsilon"] is None else f"epsilon {one['epsilon']:g}"
        member = one["membership"]
        rate = "-" if member is None else f"{member['likelihood_ratio']['tpr_at_1_percent']:.1%}"
        guesses = f"{bound['right']} of {bound['guesses']}"
        upper = "nothing" if promised is None else at_most(promised, 2)
        rows.append((name, upper, at_least(bound["lower"], 2), guesses, rate))
    read = [
        (one["source"], f"{one['recall']:.0%}", f"{one['chance']:.1%}")
        for one in found["inversion"]["readings"]
    ]
    columns = ("setting", "promised at most", "reached at least", "right guesses",
               "LiRA: TPR at 1 % FPR")  # fmt: skip
    words = ("words of one PC's texts, read from", "recovered", "by chance")
    return f"{Table(columns, rows).to_markdown()}\n\n{Table(words, read).to_markdown()}"


def audit_line() -> str:
    found = _lab("audit")
    by = {one["epsilon"]: one["canary"] for one in found["settings"]}
    recall = {one["source"]: one["recall"] for one in found["inversion"]["readings"]}
    plain, sealed = recall["its update, plain and not private"], recall["its sealed upload"]
    private = recall["its update, plain, epsilon 8"]
    summed = recall["the sum of all PCs that a round unmasks"]
    line = (
        "**We attack our own promises.** A server that gets every update without secure "
        "aggregation, and knows all texts but not which of "
        f"{found['pcs'] * found['canaries']} planted ones were trained on, proves an "
        f"epsilon of at least {at_least(by[8.0]['bound']['lower'], 2)} "
        f"({100 * by[8.0]['bound']['confidence']:g} % confidence); promised is "
        f"{at_most(by[8.0]['promised'], 2)}. Where all layers are trained, one update without "
        f"noise gives away {plain:.0%} of the words of a PC's few texts. With noise at epsilon 8 "
        f"it gives away {private:.0%}. Masked without noise it gives away {sealed:.0%}, and the "
        f"sum that a round unmasks {summed:.0%}. "
        "[How](docs/tutorials/attack-your-run.md)"
    )
    return "\n".join(textwrap.wrap(line, 100, break_on_hyphens=False))


def broken_builds() -> str:
    """Which check notices which wrong build."""
    found = json.loads((BENCH / "broken_builds.json").read_text(encoding="utf-8"))
    right = found["right_build"]
    line = (
        f"With coins of one fixed seed the audit reaches {at_least(right['lower'], 2)} on the "
        f"right build, which promises {at_most(right['promised'], 2)}."
    )
    rows = []
    for one in found["faults"]:
        checks = ", ".join(name.removeprefix("check_") for name in one["caught_by"])
        seen = one["audit"]
        proved = (
            "-" if seen is None else f"{at_least(seen['lower'], 2)}{', refuted' * seen['refuted']}"
        )
        rows.append((one["fault"].replace("_", " "), checks, proved))
    return f"{line}\n\n{Table(('wrong build', 'caught by', 'audit reaches'), rows).to_markdown()}"


def costs() -> str:
    """What secure aggregation costs, as measured by scripts/bench."""
    masks, rounds, demo_, rings = (
        json.loads((BENCH / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("secagg_cost", "secagg_round", "secagg_demo", "ring")
    )
    seconds, kib = masks["seconds"], 1 / 1024
    cores = masks.get("machine", masks)["cores"]  # files written before name no machine
    lines = [
        (
            f"The 20-PC demo takes {demo_['median_ratio']:.2f} times as long as without "
            f"(median of {len(demo_['ratios'])} pairs, {min(demo_['ratios']):.2f} to "
            f"{max(demo_['ratios']):.2f})."
        ),
        "",
        (
            f"Masking {masks['values'] // 10**6} million values with {masks['masks']} masks takes "
            f"{seconds['masks, one thread']:.3f} s on one thread, {masks['share_of_limit']:.0%} of "
            "what AES-256-CTR and the additions allow, and "
            f"{seconds['masks, two threads']:.3f} s on two. Rounded and packed as well, on "
            f"{cores} cores: {seconds['ours, rounded, masked and packed']:.3f} s, against "
            f"{seconds['Flower SecAgg+, the same']:.3f} s of Flower's SecAgg+, "
            f"{masks['speedup_over_flower']:.1f} times as fast in "
            f"{masks['bytes_over_flower']:.2f} of the bytes."
        ),
        "",
        (
            f"A round with {rounds['values']:,} values (a LoRA adapter), a tenth of the PCs lost "
            "after they gave out shares; all PCs in one process on one core, the coordinator on "
            "the other:"
        ),
        "",
    ]
    rows, stages = [], ("query.ready", "train.mask", "query.agree", "query.unmask")
    for one in rounds["rounds"]:
        pc, own = one["seconds_per_pc"], one["coordinator_seconds"]
        rows.append((
            f"{one['pcs']:,}", one["groups"],
            *(f"{pc[stage] * 1000:.1f} ms" for stage in stages),
            *(f"{seconds:.2f} s" for seconds in own.values()),
            f"{one['coordinator_memory_over_idle_bytes'] / 2**20:.0f} MiB",
        ))  # fmt: skip
    columns = ("PCs", "groups", "a PC shares", "masks", "agrees", "unmasks",
               "coordinator keeps shares", "adds", "unmasks", "memory")  # fmt: skip
    lines += [
        Table(columns, rows).to_markdown(),
        "",
        "Traffic of one PC in that round. Only as many members as are needed agree and unmask.",
        "",
    ]
    names = ("vector", "ready, up", "mask keys, down", "agree, down", "unmask, down", "unmask, up")
    sizes = [
        (f"{one['pcs']:,}", *(f"{one['bytes_per_pc'][name] * kib:,.0f} KiB" for name in names))
        for one in rounds["rounds"]
    ]
    parts = ("PCs", "vector", "shares, up", "round keys, down", "agree, down", "unmask, down",
             "released shares, up")  # fmt: skip
    lines += [Table(parts, sizes).to_markdown(), "", *_sharing(rounds), ""]
    lines += [
        (
            "Smaller rings, on the demo's job with one test seed: what rounding is beside the "
            "noise of one PC, how far the final model is from that of 32 bits, and its accuracy."
        ),
        "",
    ]
    smaller = [
        (one["bits"], one["bytes_per_value"], f"{one['rounding_over_noise']:.1e}",
         f"{one['distance_to_32_bits']:.1e}", f"{one['test_accuracy']:.4f}")
        for one in rings["rings"]
    ]  # fmt: skip
    ring = ("bits", "bytes per value", "rounding / noise", "distance", "test accuracy")
    return "\n".join([*lines, Table(ring, smaller).to_markdown()])


def _sharing(rounds: dict[str, Any]) -> list[str]:
    """The same round where every pair's key was shared: wire version 3, up to November 2026."""
    lines = []
    for old in rounds["before"]:
        new = next(one for one in rounds["rounds"] if one["pcs"] == old["pcs"])
        pc, seconds = new["seconds_per_pc"], old["seconds_per_pc"]
        size, before = new["bytes_per_pc"], old["bytes_per_pc"]
        up = size["ready, up"] + size["header, up"], before["shares and header, up"]
        down = tuple(
            sum(value for name, value in one.items() if name.endswith("down"))
            for one in (size, before)
        )
        work = pc["query.ready"] + pc["train.mask"], seconds["mask"]
        own = sum(old["coordinator_seconds"].values()), sum(new["coordinator_seconds"].values())
        lines.append(
            "Wire version 3 shared every pair's key. In the same hour a PC among "
            f"{old['pcs']:,} took {work[1] * 1000:.0f} ms with it to share and mask "
            f"({work[0] * 1000:.0f} now) and {seconds['query.agree'] * 1000:.0f} ms to agree "
            f"({pc['query.agree'] * 1000:.0f} now). "
            f"It sent {up[1] / 1024:.0f} KiB beside its vector ({up[0] / 1024:.0f} now) and got "
            f"{down[1] / 1024:.0f} KiB ({down[0] / 1024:.0f} now). The coordinator took "
            f"{own[0]:.1f} s ({own[1]:.1f} now)."
        )
    return lines


def simulations() -> str:
    """What many clients cost, as measured by scripts/bench/simulation.py."""
    found = json.loads((BENCH / "simulation.json").read_text(encoding="utf-8"))
    rows = []
    for one in found["runs"]:
        seconds, phases = one["seconds"], one["phases"]
        rows.append((
            f"{one['clients']:,}", one["workers"], one["rounds"], f"{seconds['all']:.0f} s",
            f"{seconds['frozen']:.0f} s", f"{seconds['first round']:.1f} s",
            f"{seconds['a round']:.1f} s" if one["rounds"] > 1 else "-",
            *(f"{phases[name]:.1f} s" for name in ("setup", "exchange", "unmask")),
            f"{1000 * seconds['first round'] / one['clients']:.1f} ms",
            f"{one['peak_bytes'] / 2**30:.1f} GiB",
        ))  # fmt: skip
    columns = ("clients", "processes", "rounds", "all", "frozen layers", "first round",
               "a later one", "ready", "train and mask", "unmask", "a client in the first round",
               "memory")  # fmt: skip
    texts = max(one["texts"] for one in found["runs"])
    old = found["before"]
    new = next(one for one in found["runs"] if one["clients"] == old["clients"])
    return (
        f"A head over {texts:,} texts, one private step of all texts of a client, secure "
        f"aggregation, on {found['machine']['cores']} cores "
        f"({found['machine']['processor']}):\n\n{Table(columns, rows).to_markdown()}\n\n"
        f"With wire version 3 and one process, a round of {old['clients']} clients took "
        f"{old['seconds']['a round']:.1f} s "
        f"({new['seconds']['a round']:.1f} now, measured in the same hour). "
        f"transformers alone takes {found['plain']['seconds']:.0f} s for the frozen layers."
    )


def fleet_model() -> str:
    """The fleet model beside a real fleet, as measured by scripts/bench/fleet_model.py."""
    found = json.loads((BENCH / "fleet_model.json").read_text(encoding="utf-8"))
    rows = [
        (name, f"{one['predicted']['round_seconds']:.2f} s",
         f"{one['measured']['round_seconds']:.2f} s",
         f"{one['predicted_by_measured']['round_seconds']:.2f}",
         f"{one['predicted_by_measured']['bytes_up']:.2f}")
        for name in ("head", "lora") if (one := found[name])
    ]  # fmt: skip
    columns = ("job", "a round, predicted", "measured", "predicted / measured", "the same of bytes")
    return (
        f"{Table(columns, rows).to_markdown()}\n\n{found['pcs']} real PCs over TLS on one machine "
        f"({found['machine']['processor']})."
    )


def simulators() -> str:
    """The same rounds on several simulators, as measured by scripts/bench/simulators.py."""
    found = json.loads((BENCH / "simulators.json").read_text(encoding="utf-8"))
    medians = found["medians"]
    names = {
        "flower-ray": "Flower's FedAvg on Flower's simulation runtime (Ray)",
        "flower-grid": "the same app on fedaipc's engine, one process",
        "pfl": "pfl-research, one process",
        "plain": "fedaipc's own client, LoRA, no secure aggregation",
        "secagg": "fedaipc's own client, LoRA, secure aggregation",
        "secagg-ray": "the same with `--engine flower`",
    }
    ray = medians["flower-ray"]["rounds"]
    rows = [
        (what, f"{medians[name]['rounds']:.2f} s", f"{medians[name]['rounds'] / ray:.2f}",
         f"{medians[name]['all']:.1f} s")
        for name, what in names.items()
        if name in medians
    ]  # fmt: skip
    columns = ("simulator", "rounds", "times Flower's runtime", "with its start")
    loop = medians["loop"]
    return (
        f"{found['rounds']} rounds of {found['clients']} clients with a trivial step, updates of "
        f"{found['values']:,} values (medians of {len(found['turns']['flower-ray'])} turns):\n\n"
        f"{Table(columns, rows).to_markdown()}\n\n"
        "pfl-research adds up arrays in memory: no messages, no ledger. fedaipc's own client "
        "checks a signed job, charges a ledger and draws noise. With 20 clients that train LoRA on "
        f"real texts the rounds took {loop['overhead']:.1%} beyond the training itself."
    )


def clipping() -> str:
    """What clipping costs, as measured by scripts/bench/clipping.py."""
    found = json.loads((BENCH / "clipping.json").read_text(encoding="utf-8"))
    ways = list(next(iter(found["subjects"].values()))["ways"])
    rows = []
    for name, one in found["subjects"].items():
        cells = [_ratio(one["ways"][way]) for way in ways]
        memory = " / ".join(
            f"{one['ways'][way]['memory_ratio']:.2f}" if "memory_ratio" in one["ways"][way] else "-"
            for way in ways[:2]
        )
        rows.append((f"{one['shape']}, {name}", *cells, _ratio(one["bfloat16"]), memory))
    columns = ("model, trained, batch x tokens", *ways, "book-keeping in bfloat16", "memory")
    seconds, values = found["noise"]["seconds"], found["noise"]["values"]
    noise = ", ".join(f"{what}: {value:.3f} s" for what, value in seconds.items())
    lines = [
        Table(columns, rows).to_markdown(),
        "",
        (
            f"Memory: {ways[0]} / {ways[1]}, times that of ordinary training. Whole steps of "
            "MiniLM-L6, all parameters, with noise and plain SGD, by logical batch:"
        ),
        "",
    ]
    whole = []
    for logical in ("32", "256"):
        steps = [found["whole_steps"][f"{way}, {logical}"] for way in ways[:2]]
        cells = [f"{one['private_seconds']:.2f} s, {_ratio(one)}" for one in steps]
        whole.append((logical, f"{steps[0]['ordinary_seconds']:.2f} s", *cells))
    exact = ", ".join(
        f"{found['subjects'][name]['shape']} {name}: {_ratio(one)}"
        for name, one in found["exact"].items()
    )
    torch_compile = found["compiled"]
    lines += [
        Table(("logical batch", "ordinary step", *ways[:2]), whole).to_markdown(),
        "",
        taken_on(found),
        "",
        f"Noise for {values / 1e6:.1f} million values. {noise}.",
        "",
        f"Book-keeping with all sums in float64, against an ordinary pass in float32: {exact}.",
        "",
        (
            "`torch.compile`, an ordinary pass of MiniLM-L6, full, 32 x 64, against one without: "
            f"{_ratio(torch_compile)}, and {torch_compile['first_seconds']:.0f} s for the first."
        ),
    ]
    return "\n".join(lines)


def taken_on(found: dict[str, Any]) -> str:
    """On which machine a result was measured, where its file says so."""
    machine = found.get("machine")
    if machine is None:
        return "The processor these figures were taken on was not recorded."
    return (
        f"Taken on {machine['cores']} cores of {machine['processor']} "
        f"({', '.join(machine['instructions'])}), PyTorch {machine['libraries']['torch']}."
    )


def fleet() -> str:
    """What a fleet costs beside its computation, as measured by scripts/bench/fleet.py."""
    found = _fleet()
    exchange, idle, lora = found["exchange"], found["idle"], found["lora"]
    seconds = {
        f"a message to {exchange['pcs']} PCs and back": exchange["seconds"],
        "the same on stock Flower": exchange["stock_flower_seconds"],
        f"sealed round of {lora['trainable_parameters']:,} LoRA values": lora["round_seconds"],
        "of it, beside computation": lora["seconds_beside_computation"],
    }
    times = [(what, _seconds(one)) for what, one in seconds.items()]
    rounds = [
        (one["pcs"], f"{one['round_seconds']['median']:.0f} s", f"{one['growth_vectors']:.1f}")
        for one in found["full"]
    ]
    lines = [
        Table(("", "seconds, median (worst)"), times).to_markdown(),
        "",
        (
            f"Idle, the server takes {idle['server_cpu_percent']:.1f} % of one core, a client "
            f"{idle['client_cpu_percent']:.2f} % and {idle['client_memory_bytes'] / 2**20:.0f} MiB."
        ),
        "",
        (
            f"Sealed rounds of {found['full'][0]['vector_bytes'] / 1e6:.0f} MB updates, and what "
            "the server's processes hold at most, over what they hold while they wait with the "
            "model loaded:"
        ),
        "",
        Table(("clients", "a round", "memory, in vectors"), rounds).to_markdown(),
    ]
    return "\n".join(lines)


def defaults() -> str:
    """What the defaults reach, as measured by simulations/defaults.py."""
    names = max((list(one["recipes"]) for one in _defaults()), key=len)
    rows = []
    for one in _defaults():
        majority = one["recipes"][names[0]]["runs"][0]["majority"]
        cells = [_default(one["recipes"].get(name)) for name in names]
        rows.append((one["what"], f"{majority:.3f}", *cells))
    machine = _defaults()[0]["machine"]
    where = (
        f"On {machine['processor']} ({machine['instruction_sets']}), {machine['cores']} cores, "
        f"torch {machine['torch']}. In brackets: the noise ratio (below)."
    )
    return f"{Table(('task', 'commonest label', *names), rows).to_markdown()}\n\n{where}"


def _defaults() -> list[dict[str, Any]]:
    return [
        json.loads(path.read_text(encoding="utf-8"))
        for path in sorted((RESULTS / "defaults").glob("*.json"))
    ]


def _default(one: dict[str, Any] | None) -> str:
    if one is None:
        return "-"
    ratio = one["runs"][0]["noise_ratio"]
    shown = f" ({ratio:.2f})" if ratio else ""
    return f"{one['test_accuracy_mean']:.3f} ± {one['test_accuracy_deviation']:.3f}{shown}"


def accountants() -> str:
    """How far three accountants agree, as measured by scripts/bench/accountants.py."""
    found = json.loads((BENCH / "accountants.json").read_text(encoding="utf-8"))
    within = found["tolerance"]
    text = (
        f"On {found['schedules']} schedules drawn at random PRV and PLD lie "
        f"{found['prv_and_pld_apart_relative_median']:.2%} apart (median; at most "
        f"{found['prv_and_pld_apart_at_most']:.4f}); {len(found['beyond_tolerance'])} are further "
        f"apart than {within['relative']:.0%} and {within['absolute']:g}, and RDP lies below them "
        f"in {len(found['rdp_below'])}. RDP is "
        f"{found['rdp_over_pld_median']:.2f} times PLD (median)."
    )
    return textwrap.fill(text, 100)


def _fleet() -> dict[str, Any]:
    return dict(json.loads((BENCH / "fleet.json").read_text(encoding="utf-8")))


def _seconds(one: dict[str, Any]) -> str:
    return f"{one['median']:.2f} ({one['worst']:.2f})"


def _ratio(one: dict[str, Any]) -> str:
    if "failed" in one:
        return "fails"
    low, high = one["spread"]
    return f"{one['ratio']:.2f} ({low:.2f} to {high:.2f})"


def demo(shown: Sequence[str] = ()) -> str:
    """What the demo printed, drawn again from its results; with `shown` those facts alone."""
    results = Results.model_validate_json((RESULTS / "demo.json").read_text(encoding="utf-8"))
    found = summary(results)
    if shown:
        found = replace(found, rows=[row for row in found.rows if row[0] in shown])
    out = io.StringIO()
    Console(file=out, width=80, color_system=None, force_terminal=False).print(found)
    return "\n".join(line.rstrip() for line in out.getvalue().strip().splitlines())


if __name__ == "__main__":
    main()
