"""`mammofed simulate faults`: plays the cases, prints a line for each and a table of what did not hold."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from shared_model.errors import RoundError
from simulations.benchmarks.bench import THREADS
from simulations.faults.result import Result
from simulations.words import seconds_in_words


def run_faults(
    *, only: Sequence[str], suite: bool, listing: bool, json_path: Path | None, keep: Path | None,
    console: Console | None = None,
) -> None:  # fmt: skip
    """Play the cases that `only` names, those of the test suite, or all; or list them.

    Args:
        keep: folder in which the remains of failed cases stay, logs among them.

    Raises:
        ConfigError: a pattern fits no case.
        RoundError: a case did not hold.
    """
    os.environ.update(THREADS)  # before numpy and torch: parties are forked, so this process must have one thread
    from simulations.faults.matrix import SUITE, cases, runner

    console = console or Console()
    chosen = cases(SUITE if suite else only)
    if listing:
        for case in chosen:
            console.print(case.name, highlight=False)
        return
    began, results = time.monotonic(), list[Result]()
    with contextlib.ExitStack() as stack:
        if keep is not None:
            folder = Path(tempfile.mkdtemp(prefix="faults-", dir=keep))
        else:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mammofed-faults-")))
        player = runner(folder, keep=keep is not None)
        for number, case in enumerate(chosen, start=1):
            result = player.run(case)
            results.append(result)
            mark = "[red]FAILED[/red]" if result.faults else "[green]held[/green]"
            console.print(f"{number:>3} of {len(chosen)}  {mark}  {result.name}  {result.end}", highlight=False)
            for fault in result.faults:
                console.print(f"        {fault}", style="red", markup=False, highlight=False)
    if json_path is not None:
        json_path.write_text(json.dumps([asdict(result) for result in results], indent=2) + "\n", encoding="utf-8")
    console.print(_table(results))
    failed = [result.name for result in results if result.faults]
    console.print(f"{len(results) - len(failed)} of {len(results)} cases held in "
                  f"{seconds_in_words(time.monotonic() - began)}", highlight=False)  # fmt: skip
    if failed:
        raise RoundError("not every fault was survived as it must be", found=", ".join(failed[:5]),
                         expected="the end states of undisturbed studies",
                         remedy="play one with `--only NAME --keep FOLDER` and read its logs")  # fmt: skip


def _table(results: Sequence[Result]) -> Table:
    rows: dict[str, list[bool]] = {}
    for result in results:
        rows.setdefault(result.name.partition("/")[0], []).append(not result.faults)
    table = Table(title="Faults", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("Group", no_wrap=True)
    for name in ("Cases", "Held"):
        table.add_column(name, justify="right")
    for name, held in rows.items():
        table.add_row(name, str(len(held)), str(sum(held)), style="" if all(held) else "bold red")
    return table
