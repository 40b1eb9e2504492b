"""How many seconds of `make test` each large part of the product takes, and what it may take; printed after a run.

CPU-seconds, of a test's own process and of the processes that it started and waited for, so that a machine which does
something else beside gives the same figures. What runs a shared fixture first pays for it. The files of one part:
`pytest $(python tests/shares.py monitor)`.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LEAST_TESTS = 100  # a run of fewer says nothing of shares
SLOWEST = 15


@dataclass(frozen=True)
class Part:
    """minutes: wall clock that it may take on two cores, hence twice that in CPU. places: patterns below tests/."""

    minutes: int
    places: tuple[str, ...]

    @property
    def files(self) -> set[str]:
        """Test files, relative to the repository.

        Raises:
            FileNotFoundError: a pattern that no file has, such as the name of one that was moved.
        """
        found = {place: {path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").glob(place)}
                 for place in self.places}  # fmt: skip
        if empty := [place for place, files in found.items() if not files]:
            raise FileNotFoundError(f"tests/shares.py: no test file is named {', '.join(empty)}; mend the table")
        return set().union(*found.values())


PARTS = {
    "monitor": Part(3, (
        "server/monitor/test_*.py", "client/watch/test_*.py", "end_to_end/test_monitored_*.py",
        "server/rounds/test_journal_withheld.py", "server/rounds/test_round_phases.py", "client/test_stopwatch.py",
        "client/deploy/test_own_record.py", "shared_model/test_phases.py", "simulations/test_live*.py",
        "simulations/test_journal_keeps_no_small_count.py",
    )),
    "evidence": Part(4, (
        "shared_model/test_evaluation_*.py", "shared_model/explanation/test_*.py", "shared_model/export/test_*.py",
        "shared_model/passport/test_*.py", "shared_model/imaging/test_imaging_geometry.py",
        "shared_model/test_map_figures.py", "shared_model/test_second_reader.py",
        "shared_model/test_fusion_modalities.py", "server/reporting/test_*.py", "server/test_retrain.py",
        "server/test_server_release.py", "server/deploy/test_passports.py", "client/inference/test_*.py",
        "client/test_gain*.py", "client/test_both_modalities.py", "client/test_trainer_roster.py",
        "client/ingest/test_outbox.py", "client/ingest/test_readings.py", "protocol/test_joint_metrics.py",
        "end_to_end/test_third_modality.py",
        "simulations/designs/test_*.py", "simulations/baselines/test_baselines_evidence.py",
        "simulations/baselines/test_baselines_maps.py", "simulations/benchmarks/test_exam_bench.py",
        "simulations/test_chain.py", "simulations/test_localisation.py", "simulations/test_maps_at_end.py",
        "simulations/test_released.py", "simulations/test_vouching.py",
    )),
}  # fmt: skip


def cpu_seconds() -> float:
    """Of this process and of its children that have ended and were waited for."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


class Meter:
    """CPU-seconds since it was asked last."""

    def __init__(self) -> None:
        self._last = cpu_seconds()

    def lap(self) -> float:
        before, self._last = self._last, cpu_seconds()
        return self._last - before


def table(laps: Iterable[tuple[str, float]]) -> Iterator[str]:
    """Lines for a person, from the CPU-seconds of each phase of each test, by the test's name (`file::test`)."""
    of_test: dict[str, float] = {}
    for name, seconds in laps:
        of_test[name] = of_test.get(name, 0.0) + seconds
    whole = sum(of_test.values())
    yield f"{whole:.0f} CPU-seconds in {len(of_test)} tests"
    for part, terms in PARTS.items():
        files, allowed = terms.files, 120.0 * terms.minutes
        used = sum(seconds for name, seconds in of_test.items() if name.partition("::")[0] in files)
        yield (f"{part}: {used:.0f} of {allowed:.0f} allowed ({terms.minutes} minutes on two cores)"
               + (", TOO MUCH" if used > allowed else ""))  # fmt: skip
    for name, seconds in sorted(of_test.items(), key=lambda row: -row[1])[:SLOWEST]:
        yield f"{seconds:7.1f}  {name}"


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in PARTS:
        sys.exit(f"usage: python tests/shares.py {'|'.join(PARTS)}")
    print(*sorted(PARTS[sys.argv[1]].files), sep="\n")
