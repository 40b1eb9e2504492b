"""Collects the jobs of a `--multirun` and ends it with their comparison; called by the CLI.

Not a Hydra callback: Hydra turns what goes wrong in a callback into a warning, and does not call `on_multirun_end` when
a job broke, which is when the table of the others is needed most.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from shared_model.errors import RoundError
from simulations.comparison.document import compare, write_comparison
from simulations.comparison.jobs import Job
from simulations.comparison.table import comparison_table, write_page


class Sweep:
    """The jobs of one `--multirun`, run one after another in this process."""

    def __init__(self) -> None:
        self._jobs: list[Job] = []
        self._folder: Path | None = None

    def add(self, hydra_config: Any, exit_code: int, error: str) -> None:
        """Note a job that ended.

        Args:
            hydra_config: Hydra's own settings of the job: its folder, the sweep's, its overrides.
            exit_code: 0 when it was COMPLETE. error: what went wrong, in words.
        """
        self._folder = Path(hydra_config.sweep.dir)
        self._jobs.append(Job(run_dir=Path(hydra_config.runtime.output_dir), exit_code=exit_code, error=error,
                              overrides=tuple(hydra_config.overrides.task)))  # fmt: skip

    def finish(self) -> int:
        """Print and write the comparison, if there was any job; returns the sweep's exit code.

        Raises:
            StorageError: the comparison cannot be written.
        """
        return show(self._jobs, self._folder) if self._jobs else 0


def show(jobs: list[Job], folder: Path | None) -> int:
    """Print the comparison, write it into `folder` (as JSON and as a page), and say by the exit code whether all jobs
    were COMPLETE: 0, or the code of the first that was not.

    Raises:
        StorageError: the comparison cannot be written.
    """
    document = compare(jobs)
    console = Console()
    console.print(comparison_table(document))
    if folder is not None:
        write_comparison(document, folder / "comparison.json")
        write_page(document, folder / "comparison.html")
        console.print(f"Comparison  {folder / 'comparison.html'}", markup=False, highlight=False)
    bad = [job["exit_code"] for job in document["jobs"] if job["status"] != "COMPLETE" or job["exit_code"]]
    return (bad[0] or RoundError.exit_code) if bad else 0
