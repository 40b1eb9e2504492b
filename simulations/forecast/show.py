"""The forecast of a study as plain numbers, and as tables for the terminal; made by `command`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from simulations.forecast.reckon import Disk, Memory, Traffic
from simulations.words import bytes_in_words, seconds_in_words


@dataclass(frozen=True)
class Stage:
    """One stage of a run. seconds: estimated. note: what it does or why it takes none."""

    name: str
    seconds: float
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a study will take. Exact: women, films (`exact`), patients, rounds, epsilon, tensors; estimated: the rest.

    train: training women by site, before rounding. epsilon: (round, epsilon after it) of a training woman whose site
    takes part in every round. metrics_epsilon: of the sites' own test women, who are others. longest_round_s: to be
    held against the protocol's deadline_s, at which a site that has not answered is late. measured_s: seconds that
    this forecast took.
    """

    study: str
    sites: int
    sites_per_round: int
    women: int
    films: int
    exact: bool
    train: Mapping[str, int]
    selection: int
    test: int
    rounds: int
    steps_per_round: int
    phases: tuple[tuple[str, int], ...]
    privacy: str
    sigma: float
    delta: float
    budget: float
    epsilon: tuple[tuple[int, float], ...]
    other_deltas: Mapping[str, float]
    metrics_epsilon: float
    parameters: int
    weights_bytes: int
    traffic: Traffic
    longest_round_s: float
    deadline_s: float
    stages: tuple[Stage, ...]
    memory: Memory
    disk: Disk
    measured_s: float

    @property
    def seconds(self) -> float:
        """Estimated seconds of the whole run."""
        return sum(stage.seconds for stage in self.stages)


def draw(forecast: Forecast) -> RenderableType:
    """Tables: what is done, what it costs in privacy, how long it takes, what it needs."""
    head = Text.assemble(
        ("\nPlan of study ", "dim"), (forecast.study, "bold"),
        f": about {seconds_in_words(forecast.seconds)}, {bytes_in_words(_peak(forecast.memory))} of memory, "
        f"{bytes_in_words(forecast.traffic.up + forecast.traffic.down)} between sites and coordinator",
        "" if forecast.privacy == "none" else f", epsilon {forecast.epsilon[-1][1]:.2f} for each patient",
    )  # fmt: skip
    note = Text(f"Times, memory and disk are estimates from a miniature of this very study on this machine "
                f"({seconds_in_words(forecast.measured_s)}), as busy as it was meanwhile.", style="dim")  # fmt: skip
    return Group(head, *_warnings(forecast), _study(forecast), *_privacy(forecast), _stages(forecast), _needs(forecast),
                 note)  # fmt: skip


def _warnings(forecast: Forecast) -> list[RenderableType]:
    if 2 * forecast.longest_round_s < forecast.deadline_s:
        return []
    longest, deadline = seconds_in_words(forecast.longest_round_s), seconds_in_words(forecast.deadline_s)
    return [Text(f"! The longest round is estimated at {longest}, and sites that have not answered after {deadline} "
                 "are late: raise strategy.deadline_s, or use fewer steps or sites_per_round", style="yellow")]


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title or None, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, show_header=any(columns))
    for index, name in enumerate(columns):
        table.add_column(name, justify="right" if name in ("Time", "Epsilon") else "left", no_wrap=index == 0)
    return table


def _study(forecast: Forecast) -> Table:
    least, most = min(forecast.train.values()), max(forecast.train.values())
    table = _table("What is done", "", "")
    counted = "counted" if forecast.exact else "estimate: not all were drawn"
    table.add_row("Women, films", f"{forecast.women:,} women, {forecast.films:,} films ({counted})")
    each = f"{least:,}" if least == most else f"{least:,} to {most:,}"
    table.add_row("Sites", f"{forecast.sites:,}; {each} training women a site, {sum(forecast.train.values()):,} in all"
                  f"; {forecast.sites_per_round:,} sites a round")  # fmt: skip
    table.add_row("Held out", f"{forecast.selection:,} women to choose the model, {forecast.test:,} to test it")
    phases = ", ".join(f"{name} {rounds}" for name, rounds in forecast.phases)
    steps = forecast.rounds * forecast.steps_per_round
    table.add_row("Rounds", f"{forecast.rounds:,} ({phases}), {forecast.steps_per_round} steps each: {steps:,} steps")
    table.add_row("Model", f"{forecast.parameters:,} parameters, {bytes_in_words(forecast.weights_bytes)}")
    return table


def _privacy(forecast: Forecast) -> list[RenderableType]:
    if forecast.privacy == "none":
        return [Text("Privacy: none beyond keeping the data at the site; epsilon is not bounded\n", style="yellow")]
    title = Text(f"Epsilon for each patient (delta {forecast.delta:g}, noise multiplier {forecast.sigma:g}, budget "
                 f"{forecast.budget:g})", style="italic")  # fmt: skip
    table = _table("", "After round", "Epsilon")
    for number, epsilon in forecast.epsilon:
        table.add_row(f"{number}", f"{epsilon:.2f}")
    words = [f"{epsilon:.2f} at delta {delta}" for delta, epsilon in forecast.other_deltas.items()]
    further = f"At the end the same as {', '.join(words)}. " if words else ""
    own = f"A site's own test women: {forecast.metrics_epsilon:.2f}, once." if forecast.metrics_epsilon else ""
    return [title, table, Text(further + own + "\n", style="dim")]


def _stages(forecast: Forecast) -> Table:
    table = _table("How long (estimate)", "Stage", "Time", "")
    for stage in forecast.stages:
        table.add_row(stage.name, seconds_in_words(stage.seconds), Text(stage.note, style="dim"))
    table.add_row("All", seconds_in_words(forecast.seconds), "", style="bold")
    return table


def _needs(forecast: Forecast) -> Table:
    traffic, memory, disk = forecast.traffic, forecast.memory, forecast.disk
    table = _table("What it needs", "", "", "")
    table.add_row("Bytes of a site in a round", f"{bytes_in_words(traffic.site_round_down)} to it, "
                  f"{bytes_in_words(traffic.site_round_up)} from it", "as the journal counts them")  # fmt: skip
    table.add_row("Bytes in all", f"{bytes_in_words(traffic.down)} to, {bytes_in_words(traffic.up)} from sites", "")
    if memory.preparing:
        table.add_row("Memory while films are made", bytes_in_words(memory.preparing), "estimate")
    table.add_row("Memory while training", bytes_in_words(memory.running),
                  f"estimate; and {bytes_in_words(memory.mapped)} of mapped films, where there is room")  # fmt: skip
    table.add_row("Disk", f"{bytes_in_words(disk.films)} films, {bytes_in_words(disk.cohorts)} cohorts, "
                  f"{bytes_in_words(disk.run)} run directory", "estimate")  # fmt: skip
    return table


def _peak(memory: Memory) -> int:
    return max(memory.preparing, memory.running)
