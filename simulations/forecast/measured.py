"""Reads the miniature's journal: what a request, a woman, an evaluation and a message cost; used by `reckon`."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

from simulations.forecast.miniature import LARGE, ROUNDS, SMALL, Ran, line

Rows = list[tuple[int, str, float, int, int]]  # round, site or scope, seconds, bytes up, bytes down


@dataclass(frozen=True, kw_only=True)
class PhaseCost:
    """One phase. Seconds of a site's round with the miniature's steps: `request_s` and `woman_s` for each woman in a
    step; in the phase's first round besides `first_request_s` and `first_woman_s` for each training woman.

    down, up: bytes to and from a site in a round.
    """

    name: str
    request_s: float
    woman_s: float
    first_request_s: float
    first_woman_s: float
    down: int
    up: int


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What the miniature tells. steps: optimiser steps of its rounds. report_bytes: (down, up) by kind of evaluation.

    loop_site_s: what a round costs for each site beside its training. first_wait_s: what the first round waits for.
    """

    phases: tuple[PhaseCost, ...]
    steps: int
    train: Mapping[str, int]
    loop_site_s: float
    first_wait_s: float
    selection_woman_s: float
    test_woman_s: float
    report_bytes: Mapping[str, tuple[int, int]]
    trainer_bytes: int
    launcher_bytes: int
    checkpoint_bytes: int
    journal_bytes_a_site_round: float


def read(ran: Ran) -> Measured:
    """All figures of a miniature."""
    trained, rounds, reports = _tables(ran)
    judged = {scope: [row[2] for row in reports if row[1] == scope] for scope in {row[1] for row in reports}}
    rest = [seconds - _busiest(ran, trained, number) - _judging(reports, number) for number, seconds in rounds]
    usual = max(0.0, median(rest[1:]))
    sites = len(ran.train)
    return Measured(
        phases=tuple(_phase(ran, trained, index) for index in range(len(ran.protocol.training.phases))),
        steps=ran.protocol.training.steps_per_round, train=ran.train, loop_site_s=usual / sites,
        first_wait_s=max(0.0, rest[0] - usual), selection_woman_s=median(judged["selection"]) / ran.selection,
        test_woman_s=(judged["test_initial"][0] + judged["test"][0]) / ran.test,
        report_bytes={row[1]: (row[4], row[3]) for row in reports}, trainer_bytes=ran.trainer_bytes,
        launcher_bytes=ran.launcher_bytes, checkpoint_bytes=ran.checkpoint_bytes,
        journal_bytes_a_site_round=ran.journal.stat().st_size / (sites * len(rounds)),
    )  # fmt: skip


def _tables(ran: Ran) -> tuple[Rows, list[tuple[int, float]], Rows]:
    database = sqlite3.connect(f"{ran.journal.as_uri()}?mode=ro", uri=True)
    try:
        trained = database.execute("SELECT round, site, seconds, bytes_up, bytes_down FROM participation").fetchall()
        rounds = database.execute("SELECT round, seconds FROM rounds ORDER BY round").fetchall()
        query = "SELECT round, scope, seconds, bytes_up, bytes_down FROM reports ORDER BY round"
        reports = database.execute(query).fetchall()
    finally:
        database.close()
    return trained, rounds, reports


def _busiest(ran: Ran, trained: Rows, number: int) -> float:
    seconds = {site: taken for round_number, site, taken, *_ in trained if round_number == number}
    return max(sum(seconds.get(site, 0.0) for site in lane) for lane in ran.lanes)


def _judging(reports: Rows, number: int) -> float:
    return sum(row[2] for row in reports if row[0] == number and row[1] == "selection")


def _phase(ran: Ran, trained: Rows, index: int) -> PhaseCost:
    first, usual = ROUNDS * index + 1, ROUNDS * index + 2
    rows = {number: {row[1]: row for row in trained if row[0] == number} for number in (first, usual)}
    seconds = {site: row[2] for site, row in rows[usual].items()}
    request_s, woman_s = line(_points(ran, seconds))
    extra = {site: max(0.0, row[2] - seconds[site]) for site, row in rows[first].items()}
    first_request_s, first_woman_s = _first(_points(ran, extra), _points(ran, seconds))
    down, up = max(row[4] for row in rows[usual].values()), max(row[3] for row in rows[usual].values())
    return PhaseCost(
        name=ran.protocol.training.phases[index].name, request_s=request_s, woman_s=woman_s,
        first_request_s=first_request_s, first_woman_s=first_woman_s, down=down, up=up,
    )  # fmt: skip


def _points(ran: Ran, seconds: Mapping[str, float]) -> list[tuple[int, float]]:
    """(women, seconds) of the large hospitals and of the faster half of the small: in each process the site that is
    asked first works out an epsilon that the others then find in memory, and `reckon` counts that by itself."""
    size = (LARGE + SMALL) / 2
    small = sorted((taken, site) for site, taken in seconds.items() if ran.train[site] <= size)
    chosen = [site for _, site in small[: max(1, len(small) // 2)]]
    chosen += [site for site in seconds if ran.train[site] > size]
    return [(ran.train[site], seconds[site]) for site in chosen]


def _first(extra: list[tuple[int, float]], usual: list[tuple[int, float]]) -> tuple[float, float]:
    """What a first round adds: for each woman only where it clearly takes longer than a usual one, as encoding all
    films once does; otherwise it is warming up, which does not grow with the women."""
    added, taken = max(seconds for _, seconds in extra), max(seconds for _, seconds in usual)
    return line(extra) if added > taken else (median(seconds for _, seconds in extra), 0.0)
