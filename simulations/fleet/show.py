"""What a fleet's samples say, as figures and as a table; used by `command`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import median
from typing import Any, Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from simulations.engine.deployment.rehearsal import HUB
from simulations.fleet.processes import Sight
from simulations.fleet.trend import MIB, Trend, trend
from simulations.fleet.watch import Sample, Watch
from simulations.words import bytes_in_words, seconds_in_words

SETTLED_S: Final = 120.0  # until then caches, pools and arenas fill
JUDGED: Final = ("daemon", "SuperLink", "SuperExec", "ServerApp", "guards")
TRAINERS: Final = "trainers-"


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What was deployed. start_s: until every party was connected, seconds."""

    sites: int
    trainers: int
    start_s: float
    quorum: int
    machine: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Round:
    """A closed round. opened: of its last attempt, seconds since 1970."""

    number: int
    attempts: int
    opened: float
    contributed: int
    asked: int


@dataclass(frozen=True, kw_only=True)
class Cpu:
    """CPU-seconds of each second: nothing happens; the study works. a_round: CPU-seconds."""

    idle: float
    work: float
    a_round: float


@dataclass(frozen=True, kw_only=True)
class Report:
    """All figures. memory: by role of the coordinator, from minute 2 on, bytes of RSS. disk: bytes at the end, and a
    round. site_bytes: PSS of a site without its trainer, median; trainer_bytes: of all shared trainers."""

    setup: Setup
    seconds: float
    rounds: Sequence[Round]
    round_s: float
    memory: Mapping[str, Trend | None]
    total_bytes: int
    cpu: Mapping[str, Cpu]
    disk: Mapping[str, tuple[int, float]]
    site_bytes: float
    trainer_bytes: float
    load: float
    zombies: int

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        judged = {name: there and there.flat for name, there in self.memory.items()}
        return asdict(self) | {"flat": judged}


def report_of(setup: Setup, watch: Watch, rounds: Sequence[Round]) -> Report:
    """Work out everything from samples and journal."""
    begin = rounds[0].opened if rounds else watch.work[0].time
    samples = [sample for sample in watch.work if sample.time >= begin]
    seconds = samples[-1].time - begin
    settled = min(SETTLED_S, seconds / 3)
    times = [later.opened - earlier.opened for earlier, later in pairwise(rounds)]
    closed = samples[-1].closed - samples[0].closed
    last = next((sample for sample in reversed(samples) if sample.memory), samples[-1])
    return Report(
        setup=setup, seconds=seconds, rounds=rounds, round_s=median(times) if times else float("nan"),
        memory={role: trend(_points(samples, begin, role), since=settled) for role in JUDGED},
        total_bytes=last.parties[HUB].total if HUB in last.parties else 0,
        cpu={name: _cpu(watch.idle, samples, closed, of) for name, of in _groups(setup).items()},
        disk=_disk(samples, closed), load=median(sample.load for sample in samples),
        site_bytes=median([there.total for name, there in last.parties.items() if _is_site(name)] or [0]),
        trainer_bytes=sum(there.total for name, there in last.parties.items() if name.startswith(TRAINERS)),
        zombies=sum(there.zombies for there in samples[-1].parties.values()),
    )  # fmt: skip


def _points(samples: Sequence[Sample], begin: float, role: str) -> list[tuple[float, float]]:
    return [(sample.time - begin, sample.roles[role].resident) for sample in samples if role in sample.roles]


def _is_site(name: str) -> bool:
    return name.startswith("site-")


def _groups(setup: Setup) -> dict[str, Callable[[Sample], float]]:
    """Whose CPU is shown -> how much a sample says that was."""

    def of_role(role: str) -> Callable[[Sample], float]:
        return lambda sample: sample.roles.get(role, Sight()).cpu_s

    def of_parties(which: Callable[[str], bool], share: int = 1) -> Callable[[Sample], float]:
        return lambda sample: sum(there.cpu_s for name, there in sample.parties.items() if which(name)) / share

    return {
        "coordinator": of_parties(lambda name: name == HUB),
        **{f"  {role}": of_role(role) for role in JUDGED},
        "a site, without trainer": of_parties(_is_site, setup.sites),
        "evaluator and its trainer": of_parties(lambda name: name == "evaluator"),
        "shared trainers": of_parties(lambda name: name.startswith(TRAINERS)),
        "everything": of_parties(lambda name: True),
    }  # fmt: skip


def _cpu(idle: Sequence[Sample], work: Sequence[Sample], closed: int, of: Callable[[Sample], float]) -> Cpu:
    def rate(samples: Sequence[Sample]) -> float:
        if len(samples) < 2:
            return float("nan")
        return (of(samples[-1]) - of(samples[0])) / (samples[-1].time - samples[0].time)

    return Cpu(idle=rate(idle), work=rate(work),
               a_round=(of(work[-1]) - of(work[0])) / closed if closed else float("nan"))  # fmt: skip


def _disk(samples: Sequence[Sample], closed: int) -> dict[str, tuple[int, float]]:
    first, last = samples[0].disk, samples[-1].disk
    return {name: (last[name], (last[name] - first[name]) / closed if closed else float("nan")) for name in last}


# --- for a person ---


def show(report: Report, console: Console) -> None:
    """Print the tables."""
    setup = report.setup
    console.print(
        f"{setup.sites} sites and an evaluator, real SuperLink, SuperNodes, tunnels and presence; shared: the sites' "
        f"trainers ({setup.trainers} processes, {bytes_in_words(report.trainer_bytes)}), the machine "
        f"({setup.machine.get('cores', '?')} cores, load {report.load:.1f}). All were connected after "
        f"{seconds_in_words(setup.start_s)}.", highlight=False,
    )  # fmt: skip
    console.print(_rounds_in_words(report), highlight=False)
    console.print(_memory_table(report))
    console.print(_cpu_table(report))
    console.print(_disk_table(report))


def _rounds_in_words(report: Report) -> str:
    rounds = report.rounds
    if not rounds:
        return f"No round was closed in {seconds_in_words(report.seconds)}."
    whole = sum(there.contributed == there.asked for there in rounds)
    share = sum(there.contributed for there in rounds) / max(1, sum(there.asked for there in rounds))
    return (f"{len(rounds)} rounds closed in {seconds_in_words(report.seconds)}, {report.round_s:.1f} s each; "
            f"{whole} with every site, participation {100 * share:.1f} %, "
            f"{sum(there.attempts - 1 for there in rounds)} repeated attempts.")  # fmt: skip


def _memory_table(report: Report) -> Table:
    table = _table("Memory of the coordinator (RSS)", "Minute 2", "End", "An hour", "Allowed", "Verdict")
    for role, there in report.memory.items():
        if there is None:
            table.add_row(role, *[""] * 4, "too short")
            continue
        allowed = there.allowed / there.seconds * 3600 if there.seconds else float("nan")
        table.add_row(role, _mb(there.first), _mb(there.last), f"{there.an_hour / MIB:+.1f} MiB",
                      f"{allowed / MIB:.0f} MiB", "flat" if there.flat else "grows",
                      style="green" if there.flat else "bold red")  # fmt: skip
    table.caption = (f"All of the coordinator, shared pages once: {bytes_in_words(report.total_bytes)} at the end; "
                     f"a site without its trainer {bytes_in_words(report.site_bytes)}")  # fmt: skip
    return table


def _cpu_table(report: Report) -> Table:
    table = _table("CPU, share of a core", "Nothing happens", "Rounds", "CPU-s a round")
    for name, there in report.cpu.items():
        table.add_row(name, f"{100 * there.idle:.1f} %", f"{100 * there.work:.1f} %", f"{there.a_round:.2f}")
    return table


def _disk_table(report: Report) -> Table:
    table = _table("Disk of the coordinator", "At the end", "A round")
    for name, (size, a_round) in report.disk.items():
        table.add_row(name, bytes_in_words(size), f"{a_round / 1e3:,.1f} kB")
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, caption_justify="left")
    table.add_column("", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _mb(value: float) -> str:
    return f"{value / MIB:.1f} MiB"
