"""Which studies a comparison is about: the jobs of a sweep that just ended, or run directories that lie there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from shared_model.errors import StorageError

MAX_OVERRIDES_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Job:
    """One study of a comparison.

    overrides: as given on the command line. exit_code: None where the run directory alone is known. error: what kept it
    from running, in words.
    """

    run_dir: Path
    overrides: tuple[str, ...]
    exit_code: int | None = None
    error: str = ""


def find_runs(folders: Iterable[Path]) -> list[Job]:
    """The runs in these folders, in their order; a sweep's folder stands for its jobs, in order of their numbers.

    Raises:
        StorageError: a folder that is neither, or overrides that cannot be read.
    """
    jobs = []
    for folder in folders:
        runs = [folder] if _is_run(folder) else sorted(filter(_is_run, folder.iterdir()), key=_number)
        if not runs:
            raise StorageError(f"{folder} is neither a run nor a sweep", expected="launch.json in it or in its folders",
                               remedy="give directories that `mammofed simulate` printed")  # fmt: skip
        jobs += [Job(run_dir=run, overrides=read_overrides(run)) for run in runs]
    return jobs


def read_overrides(run_dir: Path) -> tuple[str, ...]:
    """What Hydra wrote down of the command line; empty where nobody did.

    Raises:
        StorageError: the file is too large or no list of texts.
    """
    path = run_dir / ".hydra" / "overrides.yaml"
    if not path.is_file():
        return ()
    with path.open("rb") as stream:
        data = stream.read(MAX_OVERRIDES_BYTES + 1)
    try:
        values = yaml.safe_load(data) if len(data) <= MAX_OVERRIDES_BYTES else None
    except (yaml.YAMLError, RecursionError, ValueError):
        values = None
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise StorageError(f"{path} is damaged", expected="a list of texts, as Hydra writes it",
                           remedy="restore the run directory from its backup")  # fmt: skip
    return tuple(values)


def common_overrides(jobs: Sequence[Job]) -> tuple[str, ...]:
    """What all jobs were given, in the first one's order; nothing for a single job, whose overrides are its name."""
    if len(jobs) < 2:
        return ()
    return tuple(o for o in jobs[0].overrides if all(o in job.overrides for job in jobs))


def _is_run(folder: Path) -> bool:
    """Also a job of a sweep that was refused before it wrote anything of its own."""
    return (folder / "launch.json").is_file() or (folder / ".hydra" / "overrides.yaml").is_file()


def _number(folder: Path) -> tuple[bool, int, str]:
    """Jobs by number, then other names."""
    return (False, int(folder.name), "") if folder.name.isdecimal() else (True, 0, folder.name)
