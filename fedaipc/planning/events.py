"""One run of a job on a fleet as a sequence of events. No model is trained, and no message is sent.

Two kinds of event stand in one queue: the turn of an hour, at which PCs come and leave, and an
attempt at a round, which follows the coordinator's own steps (coordinator/coordinator.py).

Sampled exactly: who is drawn and with whom in a group, who is there, who drops out and where, each
PC independently of the others. Only counts are kept, by group and kind of PC, so memory is a few
bytes for each PC of a round. Aggregated: PCs of one class take equally long. A group's requests
arrive together. A PC's loss in a round does not change how many are there in the next. PCs whose
attempt was void do not rest. All bytes of a round travel with the model and the update.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import bdtrc

from fedaipc.planning.fleet import HOURS
from fedaipc.planning.waiting import listened, look, served, turns
from fedaipc.secagg.roster import KEY_SECONDS

if TYPE_CHECKING:
    import numpy.typing as npt

    from fedaipc.config import Settings
    from fedaipc.planning.fleet import Fleet
    from fedaipc.planning.load import Floats, Ints, Load, Pcs

_HOUR, _ATTEMPT = 0, 1  # events; at the same time PCs come and leave first
HOUR_SECONDS = 3600.0
DAYS = 30  # without a round, after which a run is given up
_TRIES = 500  # to begin one attempt, within the same time
_HOPELESS = 1e-9
_RESTART = 10.0  # s until the server's coordinator tries again
_START_SECONDS = 60.0  # for PCs to connect before the first round, if not all of them are there
_REQUESTS = 4  # of a PC for one message: look, confirm, answer, upload
_LONGEST_PAUSE = 1.0  # s between two looks of a coordinator


@dataclass(slots=True)
class RunOutcome:
    """What a simulated run took. `why` says why it did not reach its last round, None if it did.

    `seconds` is all of it, of which `waited` passed before rounds began. `rounds`, `phases`
    and `arrived` are of each round that was not void: seconds, of which to set up, to exchange and
    to unmask, and updates. PCs were `charged` and `uploaded`
    so often; `busy_seconds` is their work and `watt_seconds` the energy of it. Bytes are the
    server's. `seen` is the largest share of the PCs that was there when a round was to begin.
    """

    why: str | None = None
    seconds: float = 0.0
    waited: float = 0.0
    void: int = 0
    rounds: list[float] = field(default_factory=list)
    phases: list[tuple[float, float, float]] = field(default_factory=list)
    arrived: list[int] = field(default_factory=list)
    charged: int = 0
    uploaded: int = 0
    busy_seconds: float = 0.0
    watt_seconds: float = 0.0
    bytes_in: float = 0.0
    bytes_out: float = 0.0
    seen: float = 0.0


def simulate_run(
    job: Settings, fleet: Fleet, pcs: Pcs, load: Load, rng: np.random.Generator
) -> RunOutcome:
    """One run, with the randomness of `rng`. Never raises where a run is given up: it says why."""
    return _Run(job, fleet, pcs, load, rng).outcome()


class _Run:
    """PCs are of kinds: those of each class that hold their frozen layers' output, then those that
    have yet to compute it. Arrays of PCs have the shape (kinds,) or (groups, kinds).
    """

    def __init__(
        self, job: Settings, fleet: Fleet, pcs: Pcs, load: Load, rng: np.random.Generator
    ) -> None:
        self._job, self._load, self._rng = job, load, rng
        self._server, self._dropout = fleet.server, fleet.dropout
        self._classes = len(pcs.share)
        counts = pcs.counts(load.clients)
        fresh = np.where(pcs.prepare > 0, counts, 0)
        total = np.concatenate([counts - fresh, fresh])
        self._work = np.concatenate([pcs.train, pcs.train + pcs.prepare])
        self._beside, self._watts = np.tile(pcs.beside, 2), np.tile(pcs.watts, 2)
        self._latency = np.tile(pcs.latency, 2)
        self._travel = np.tile(load.down / pcs.down + load.up / pcs.up + _REQUESTS * pcs.latency, 2)
        self._leave, self._join = turns(np.tile(pcs.available, 2))
        self._begin = fleet.start_hour * HOUR_SECONDS
        self._there = rng.binomial(total, np.tile(pcs.available[fleet.start_hour], 2))
        self._away = total - self._there
        self._attempts = self._tries = 0
        self._epoch: tuple[int, float] | None = None  # its first attempt, and when it began
        self._last = self._begin  # when the last attempt ended
        self._found = RunOutcome()

    def outcome(self) -> RunOutcome:
        """All events up to the last round, or until the run is given up."""
        events = [(self._begin, _ATTEMPT), (self._begin + HOUR_SECONDS, _HOUR)]
        heapq.heapify(events)
        while len(self._found.rounds) < self._job.rounds:
            now, event = heapq.heappop(events)
            if event == _HOUR:
                self._turn(int(now // HOUR_SECONDS) % HOURS)
                heapq.heappush(events, (now + HOUR_SECONDS, _HOUR))
                continue
            if (why := self._given_up(now)) is not None:
                self._found.why = why
                self._last = now
                break
            heapq.heappush(events, (self._attempt(now), _ATTEMPT))
        self._found.seconds = self._last - self._begin
        return self._found

    def _turn(self, hour: int) -> None:
        """PCs leave and come as `hour` begins."""
        left = self._rng.binomial(self._there, self._leave[hour])
        came = self._rng.binomial(self._away, self._join[hour])
        self._there += came - left
        self._away += left - came

    def _given_up(self, now: float) -> str | None:
        federation, done = self._job.federation, len(self._found.rounds)
        allowed = self._job.rounds + federation.spare_attempts
        if self._attempts >= allowed:
            return (
                f"{self._found.void:,} void rounds: all {allowed:,} attempts of the job were used "
                f"after {done:,} of {self._job.rounds:,} rounds"
            )
        if now - self._last > DAYS * 24 * HOUR_SECONDS or self._tries >= _TRIES:
            asked, least = int(self._load.groups[0]), int(self._load.least[0])
            return (
                f"too few PCs are there and answer at one time: of {asked:,} that are drawn as a "
                f"group {least:,} are needed, and at most {self._found.seen:.0%} of all were there"
            )
        return None

    def _attempt(self, now: float) -> float:
        """Try a round; when the next event of this kind is due."""
        began = now
        load, job, found = self._load, self._job, self._found
        found.seen = max(found.seen, int(self._there.sum()) / load.clients)
        if self._hopeless():
            return self._too_few(now)
        now += self._setup(now)
        cells = self._drawn()
        cells[cells.sum(1) < load.least] = 0
        if cells.sum() < max(1, job.federation.min_clients):
            return self._too_few(now)
        seconds, cells = self._ready(cells, idle=now - self._last)
        now += seconds
        if cells.sum() < max(1, job.federation.min_clients):
            self._tries += 1
            return now + _RESTART
        self._attempts, self._tries = self._attempts + 1, 0
        found.waited += began - self._last
        found.charged += int(cells.sum())
        found.bytes_out += float(cells.sum()) * load.down
        ready = now
        seconds, inside, idle = self._collect(cells, now, looked=seconds)
        now = collected = now + seconds
        uploads = inside.sum(1)
        found.uploaded += int(uploads.sum())
        found.bytes_in += float(uploads.sum()) * load.up
        if load.sealed:
            seconds, whole = self._unmask(cells.sum(1), uploads, idle)
            now += seconds
            uploads = uploads * whole
        unmasked = now
        if (arrived := int(uploads.sum())) < max(1, job.federation.min_clients):
            found.void += 1
        else:
            done = len(found.rounds) + 1
            if done % job.evaluation.every == 0 or done == job.rounds:
                now += self._server.evaluation_seconds
            found.rounds.append(now - began)
            found.phases.append((ready - began, collected - ready, unmasked - collected))
            found.arrived.append(arrived)
        moved = inside.sum(0)[self._classes :]  # these need not compute their frozen layers again
        self._there += np.concatenate([moved, -moved])
        self._last = now
        return now

    def _hopeless(self) -> bool:
        """Whether no group of any draw would have enough PCs, except with odds of 1e-9."""
        load = self._load
        share = int(self._there.sum()) / load.clients
        odds = bdtrc(int(load.least.min()) - 1, int(load.groups.max()), share)  # binomial tail
        return bool(odds * len(load.groups) < _HOPELESS)

    def _setup(self, now: float) -> float:
        """Everybody's keys, where an epoch begins: the list of members goes to each PC."""
        first = self._epoch is None
        if self._epoch is not None:
            attempt, began = self._epoch
            if (
                self._attempts < attempt + self._job.aggregation.key_rounds
                and now + self._job.federation.round_timeout < began + KEY_SECONDS
            ):
                return 0.0
        self._epoch = self._attempts, now
        there = int(self._there.sum())
        sent = float(there) * self._load.members
        self._found.bytes_out += sent
        seconds = self._exchange(there, now - self._last, self._latency.max())
        seconds += 8 * sent / (1e6 * self._server.up_mbit)
        return float(seconds) + (_START_SECONDS if first and self._away.any() else 0.0)

    def _drawn(self) -> Ints:
        """The cohort's PCs that are there, by group and kind."""
        load, both = self._load, np.concatenate([self._there, self._away])
        if load.cohort < load.clients:
            both = self._rng.multivariate_hypergeometric(both, load.cohort, method="marginals")
        labels = np.repeat(np.arange(len(both), dtype=np.uint8), both)
        if len(load.groups) > 1:
            labels = self._rng.permuted(labels)
        cells, start = [], 0
        sizes, counts = np.unique(load.groups, return_counts=True)  # one or two, the larger first
        for size, count in zip(sizes[::-1], counts[::-1], strict=True):
            table = labels[start : (start := start + size * count)].reshape(count, size)
            # A kind after the other: quicker than one count over groups and kinds.
            cells.append(
                [np.count_nonzero(table == kind, axis=1) for kind in range(len(both) // 2)]
            )
        return np.concatenate(cells, axis=1).T.astype(np.int64)

    def _too_few(self, now: float) -> float:
        """When to look again: soon where another draw may do, otherwise when PCs come and leave."""
        federation = self._job.federation
        spare = federation.spare_attempts - self._found.void
        skipped = self._attempts - self._found.void - len(self._found.rounds)
        there = min(int(self._there.sum()), self._load.cohort)
        if (
            self._load.cohort < self._load.clients
            and 2 * (spare - skipped - 1) >= federation.spare_attempts
            and there >= max(federation.min_clients, int(self._load.least.min()))
        ):
            self._attempts += 1
            return now + _RESTART
        return (now // HOUR_SECONDS + 1) * HOUR_SECONDS

    def _ready(self, cells: Ints, idle: float) -> tuple[float, Ints]:
        """Seconds until all that are left of `cells` have said that they take part, and those."""
        federation, latency = self._job.federation, self._slowest(cells)
        lost = self._lost(cells, self._dropout.ready)
        seconds = float(self._exchange(int(cells.sum()), idle, latency))
        left = cells - lost
        if lost.any():
            first = self._attempts == 0
            seconds += self._silence(
                federation.round_timeout if first else federation.stage_timeout
            )
            left[left.sum(1) < self._load.least] = 0
        return seconds, left

    def _collect(self, cells: Ints, now: float, looked: float) -> tuple[float, Ints, float]:
        """The model goes out and updates come in: seconds, whose update came, by group and kind,
        and for how long the first of them have been waiting since.
        """
        server, load = self._server, self._load
        per_out = 8 * load.down / (1e6 * server.up_mbit) + server.message_seconds / 2
        per_in = 8 * load.up / (1e6 * server.down_mbit) + server.message_seconds / 2
        per_in += load.parameters / server.values_per_second
        sent = np.cumsum(cells.sum(1))[:, None] * per_out
        own = self._work + self._beside + self._travel + server.exchange_seconds
        arrival = sent + own + look(looked, int(cells.sum()))
        dropped = self._lost(cells, self._dropout.mask)
        left = self._lost(cells - dropped, 1 - self._stay(now, arrival))
        lost = dropped + left
        # Half of the work of those that are lost, at times between request and answer.
        done = (cells - lost / 2).sum(0) * self._work
        self._found.busy_seconds += float(
            done.sum() + ((cells - lost / 2).sum(0) * self._beside).sum()
        )
        self._found.watt_seconds += float((done * self._watts).sum())
        timeout, noticed = self._job.federation.round_timeout, self._dropout.noticed_after
        some = cells > lost
        finish = np.full(arrival.shape, np.inf)
        finish[some] = served(arrival[some], (cells - lost)[some], per_in)
        # Of a group's PCs of one kind all drop out at one time between request and answer, and all
        # leave at the last turn of an hour before it.
        when = sent + self._rng.random(arrival.shape) * (arrival - sent)
        turn = np.maximum(0, arrival - (now + arrival) % HOUR_SECONDS)
        events = [finish[some]]
        if noticed <= timeout:
            events += [when[dropped > 0] + noticed, turn[left > 0] + noticed]
        end, idle = listened(
            np.concatenate(events), timeout, silent=noticed > timeout and bool(lost.any())
        )
        inside = np.where(finish <= end, cells - lost, 0)
        first = float(finish.min(initial=np.inf))
        return end + min(_LONGEST_PAUSE, idle / 3) / 2, inside, max(0.0, end - min(first, end))

    def _unmask(
        self, participants: Ints, uploads: Ints, idle: float
    ) -> tuple[float, npt.NDArray[np.bool_]]:
        """Seconds of all groups, one after the other, and which of them were unmasked."""
        load = self._load
        shares = (participants + load.colluding) // 2 + 1
        trying = (participants > 0) & (uploads >= load.least)
        needed, there = np.where(trying, shares, 0), np.where(trying, uploads, 0)
        agree = self._waves(needed, there, self._dropout.agree)
        signed = trying & agree.enough
        needed = np.where(signed, shares, 0)
        # Those that signed are asked first, then the others that sent an update.
        there = np.where(signed, shares + there - agree.asked, 0)
        release = self._waves(needed, there, self._dropout.unmask)
        fixed = agree.seconds + release.seconds
        fixed += np.where(signed, self._server.unmask_seconds * participants, 0.0)
        looks = np.zeros_like(fixed)
        for _ in range(2):  # a group waits for the groups before it: how long follows from `looks`
            before = np.cumsum(fixed + looks) - (fixed + looks)
            looks = np.where(trying, look(idle + before, np.maximum(1, agree.asked)), 0.0)
            looks += np.where(signed, look(agree.seconds, np.maximum(1, release.asked)), 0.0)
        return float((fixed + looks).sum()), signed & release.enough

    def _waves(self, needed: Ints, there: Ints, chance: float) -> _Waves:
        """Ask as many of those `there` as answers are missing, again and again.

        Without the time until PCs look for a message. Shapes (groups,).
        """
        missing, waiting = needed.copy(), there.copy()
        seconds = np.zeros(len(needed))
        silence = self._silence(self._job.federation.stage_timeout)
        while (active := (missing > 0) & (waiting > 0)).any():
            asked = np.where(active, np.minimum(missing, waiting), 0)
            lost = self._lost(asked, chance)
            seconds += np.where(active, self._handled(asked) + self._latency.max() * _REQUESTS, 0)
            seconds += np.where(lost > 0, silence, 0.0)
            missing -= asked - lost
            waiting -= asked
        # No group is left that still lacks answers and has somebody to ask.
        seconds += np.where((missing > 0) & (needed > 0), silence, 0.0)
        return _Waves(seconds, missing <= 0, there - waiting)

    def _lost(self, pcs: Ints, chance: float | Floats) -> Ints:
        if not np.any(chance):
            return np.zeros_like(pcs)
        return self._rng.binomial(pcs, np.clip(chance, 0.0, 1.0)).astype(np.int64)

    def _stay(self, now: float, arrival: Floats) -> Floats:
        """The chance of PCs to be there until `arrival` seconds after `now`."""
        if not self._leave.any():
            return np.ones_like(arrival)
        hour, into = divmod(now, HOUR_SECONDS)
        # After so many days all have decided again, and again.
        turned = np.minimum((into + arrival) // HOUR_SECONDS, DAYS * HOURS).astype(np.int64)
        hours = (int(hour) + 1 + np.arange(turned.max())) % HOURS
        stay = np.cumprod(np.vstack([np.ones(arrival.shape[1]), 1 - self._leave[hours]]), axis=0)
        return np.asarray(stay[turned, np.arange(arrival.shape[1])])

    def _silence(self, timeout: float) -> float:
        """How long a PC that has vanished is waited for."""
        return min(timeout, self._dropout.noticed_after)

    def _slowest(self, cells: Ints) -> float:
        return float(self._latency[cells.any(0)].max(initial=0.0))

    def _handled(self, pcs: Ints | int) -> Floats:
        server = self._server
        return np.asarray(
            server.exchange_seconds + server.message_seconds * np.maximum(0, np.asarray(pcs) - 1)
        )

    def _exchange(self, pcs: int, idle: float, latency: float) -> Floats:
        """Seconds of one small message to `pcs` PCs, idle for so long, and back."""
        return self._handled(pcs) + _REQUESTS * latency + look(idle, pcs)


@dataclass(frozen=True, slots=True)
class _Waves:
    """Of each group: seconds, whether enough members answered, how many were asked."""

    seconds: Floats
    enough: npt.NDArray[np.bool_]
    asked: Ints
