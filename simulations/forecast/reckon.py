"""From what was counted and what the miniature measured to the forecast of the whole study; no input or output here.

A site's round takes `request + woman * q n` seconds, both in proportion to the steps; the line goes through the small
and the large hospitals of the miniature. What only a phase's first round has to do (say, to encode all films once) is
another such line, over all training women.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from shared_model.protocol import Protocol
from simulations.forecast.measured import Measured, PhaseCost
from simulations.forecast.sizes import Party
from simulations.parties import HELD_OUT

LOAD_BYTES = 128 << 20  # client.training.local.LOAD_BYTES: pixels of a step in memory at a time (tested to be the same)
COPIES = 3  # of all updates at the coordinator while it aggregates: as received, as checked, as the strategy has them
KEPT_REPLIES = 4  # client.trainer.site.KEPT_REPLIES (tested to be the same)
HALF = 2  # bytes of a pixel in a prepared cohort (float16)
CHANNELS = 2


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Bytes of tensors and fields, as the journal counts them: of one site in one round, and of the study."""

    site_round_down: int
    site_round_up: int
    down: int
    up: int


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes at the peak of each stage. mapped: prepared films, which the system takes back when it needs the room."""

    preparing: int
    running: int
    mapped: int


@dataclass(frozen=True, kw_only=True)
class Disk:
    """Bytes of films as DICOM files, of prepared cohorts, and of the run directory at the end."""

    films: int
    cohorts: int
    run: int


def traffic(protocol: Protocol, measured: Measured, *, released: int) -> Traffic:
    """Messages of the whole study. released: sites that give their own metrics at the end."""
    asked, down, up = protocol.federation.sites_per_round, 0, 0
    for number in range(1, protocol.rounds + 1):
        cost = _cost(protocol, measured, number)
        digits = len(str(number)) - 1  # the miniature's rounds have one digit
        down += asked * (cost.down + digits)
        up += asked * (cost.up + digits)
    for scope, times in judged(protocol, released=released).items():
        one_down, one_up = measured.report_bytes.get(scope, measured.report_bytes["selection"])
        down += times * one_down
        up += times * one_up
    first = measured.phases[0]
    return Traffic(site_round_down=first.down, site_round_up=first.up, down=down, up=up)


def judged(protocol: Protocol, *, released: int) -> dict[str, int]:
    """How often each kind of evaluation is asked for."""
    every = protocol.evaluation.every
    rounds = {number for number in range(1, protocol.rounds + 1) if number % every == 0} | {protocol.rounds}
    sites = released if protocol.metrics_alone else 0
    return {"initial": 1, "selection": len(rounds), "test_initial": 1, "test": 1, "site": sites}


def round_seconds(protocol: Protocol, measured: Measured, patients: Mapping[str, int], *, processes: int,
                  epsilon_s: float) -> list[float]:  # fmt: skip
    """Each round, without evaluation: its busiest process, and what the loop adds for each site asked."""
    asked = protocol.federation.sites_per_round / len(protocol.federation.sites)
    lanes = share(patients, processes)
    seconds, before = list[float](), None
    for number in range(1, protocol.rounds + 1):
        phase, cost = protocol.training.phase(number), _cost(protocol, measured, number)
        steps, rate = protocol.steps(number) / measured.steps, protocol.sample_rate(number)
        busiest = max(
            sum(steps * (cost.request_s + cost.woman_s * rate * patients[site])
                + (cost.first_request_s + cost.first_woman_s * patients[site]) * (phase is not before)
                for site in lane)
            for lane in lanes
        )  # fmt: skip
        seconds.append(asked * busiest + epsilon_s + measured.loop_site_s * protocol.federation.sites_per_round)
        before = phase
    seconds[0] += measured.first_wait_s
    return seconds


def judging_seconds(protocol: Protocol, measured: Measured, parties: Mapping[str, Party], *, processes: int) -> tuple[
    float, float
]:  # fmt: skip
    """Evaluation during the rounds; and at the end, `test` twice and the sites' own test women."""
    held_out, own = parties[HELD_OUT].parts, [p.parts["test"] for n, p in parties.items() if n != HELD_OUT]
    times = judged(protocol, released=len(own))
    rounds = (times["initial"] + times["selection"]) * measured.selection_woman_s * held_out["selection"]
    ending = measured.test_woman_s * held_out["test"]
    if times["site"]:
        ending += measured.selection_woman_s * sum(own) / processes
    return rounds, ending


def memory(protocol: Protocol, measured: Measured, patients: Mapping[str, int], *, processes: int, weights: int,
           films: int, preparing: int) -> Memory:  # fmt: skip
    """Peaks; the miniature's own memory is what does not grow with the study."""
    film = CHANNELS * protocol.pipeline.height * protocol.pipeline.width
    rate = max(protocol.sample_rate(number) for number in range(1, protocol.rounds + 1))
    step = max(patients.values()) * rate * 4 * film * 4  # four views, float32
    seen = max(measured.train.values()) * 4 * film * 4
    trainer = measured.trainer_bytes + max(0, min(LOAD_BYTES, round(step)) - seen)
    updates = COPIES * protocol.federation.sites_per_round * weights
    return Memory(preparing=preparing, running=processes * trainer + measured.launcher_bytes + updates,
                  mapped=films * film * HALF)  # fmt: skip


def disk(protocol: Protocol, measured: Measured, *, films: int, film_bytes: float, sites: int, up: int) -> Disk:
    """What stays on the disk; the journal grows with every site and round."""
    prepared = films * CHANNELS * protocol.pipeline.height * protocol.pipeline.width * HALF
    kept = min(KEPT_REPLIES, protocol.rounds) * sites * up
    journal = measured.journal_bytes_a_site_round * sites * protocol.rounds
    run = (protocol.rounds + 2) * measured.checkpoint_bytes + kept + journal
    return Disk(films=round(films * film_bytes), cohorts=prepared, run=round(run))


def share(patients: Mapping[str, int], processes: int) -> list[list[str]]:
    """Sites over processes, the largest first, each to the least loaded, as `simulations.engine.pool` does it."""
    lanes: list[list[str]] = [[] for _ in range(processes)]
    loads = [0] * processes
    for site in sorted(patients, key=lambda s: (-patients[s], s)):
        least = min(range(processes), key=lambda i: (loads[i], len(lanes[i]), i))
        lanes[least].append(site)
        loads[least] += patients[site]
    return lanes


def marks(protocol: Protocol, *, most: int = 8) -> list[int]:
    """Rounds at which the curve of epsilon is told: the last of each phase, and some evenly between."""
    ends, last = [], 0
    for phase in protocol.training.phases:
        last += phase.rounds
        ends.append(last)
    even = [max(1, round(protocol.rounds * part / 4)) for part in range(1, 5)]
    return sorted({*ends[:most], *even, protocol.rounds})


def _cost(protocol: Protocol, measured: Measured, number: int) -> PhaseCost:
    return measured.phases[protocol.training.phases.index(protocol.training.phase(number))]
