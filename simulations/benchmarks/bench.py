"""`mammofed simulate bench`: runs the sections of the bench, prints a table for each and writes all rows as JSON.

Absolute figures belong to the machine; what is promised are ratios, both sides measured alternately in the same run.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from rich.console import Console

from shared_model.errors import ConfigError, MammoFedError
from simulations.benchmarks.table import Row, draw
from simulations.words import seconds_in_words

# name -> (title, module with `measure() -> list[Row]`); imported only when asked for
SECTIONS: dict[str, tuple[str, str]] = {
    "dp": ("Patient-level DP-SGD: speed and memory", "simulations.benchmarks.dp_engines"),
    "gpu": ("Patient-level DP-SGD on a GPU", "simulations.benchmarks.gpu"),
    "privacy": ("What a site's privacy guards cost", "simulations.benchmarks.privacy"),
    "films": ("DICOM films prepared, by transfer syntax", "simulations.benchmarks.films"),
    "exam": ("An exam of four films from DICOM to score and heat map, one core", "simulations.benchmarks.exam"),
    "import": ("A hospital imported, and imported again", "simulations.benchmarks.imports"),
    "cohort": ("Opening a prepared cohort", "simulations.benchmarks.cohorts"),
    "round": ("A round with next to nothing to train", "simulations.benchmarks.rounds"),
    "scaling": ("Ten hospitals against a hundred", "simulations.benchmarks.scaling"),
    "monitor": ("Watching a study: a refresh, and what it costs the study", "simulations.benchmarks.monitor"),
    "serve": ("Scores by HTTP at a site, decoding included", "simulations.benchmarks.serving"),
    "start": ("The default study from an empty cache", "simulations.benchmarks.start"),
    "deployment": ("A deployed round against plain Flower's", "simulations.benchmarks.deployment.compare"),
    "secure_sum": ("A secure sum against a plain one, CPU time", "simulations.benchmarks.secure_sum"),
    "peers": ("The same study in other frameworks", "simulations.benchmarks.peers.compare"),
}
# Take minutes, install packages or need a GPU: never without `--only`.
ON_REQUEST = frozenset({"deployment", "gpu", "peers", "secure_sum"})
VERSIONS = ("torch", "opacus", "flwr", "numpy", "pydicom")
THREADS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}


def run_bench(
    *, json_path: Path | None, only: Sequence[str], peers_folder: Path | None = None, console: Console | None = None
) -> None:
    """Run the sections named in `only`, or all but those `ON_REQUEST`, one after another.

    peers_folder: where section `peers` installs what it compares with; None: its own default.

    Raises:
        ConfigError: `only` names a section that does not exist.
        MammoFedError: a section failed; the others were run and written all the same.
    """
    unknown = sorted(set(only) - set(SECTIONS))
    if unknown:
        raise ConfigError("--only: no such section", found=unknown, expected=", ".join(SECTIONS))
    os.environ.update(THREADS)  # before torch is imported: spinning threads would be what is measured
    console = console or Console()
    machine = machine_facts()
    console.print(", ".join(f"{name} {value}" for name, value in machine.items()), style="dim", highlight=False)
    results: dict[str, list[Row]] = {}
    failures: dict[str, str] = {}
    for name in only or [name for name in SECTIONS if name not in ON_REQUEST]:
        title, module = SECTIONS[name]
        began = time.monotonic()
        try:
            measure: Callable[..., list[Row]] = importlib.import_module(module).measure
            results[name] = measure(peers_folder) if name == "peers" and peers_folder else measure()
        except (MammoFedError, OSError, RuntimeError) as error:
            failures[name] = f"{type(error).__name__}: {error}"
            console.print(f"{title}: failed, {failures[name]}", style="bold red", markup=False)
            continue
        console.print(draw(f"{title} ({seconds_in_words(time.monotonic() - began)})", results[name]))
    if json_path is not None:
        document = {
            "machine": machine, "failures": failures,
            "sections": {name: [asdict(row) | {"met": row.met} for row in rows] for name, rows in results.items()},
        }  # fmt: skip
        json_path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    if failures:
        raise MammoFedError("not every section could be measured", found=", ".join(failures),
                            remedy="read what stands above")  # fmt: skip


def machine_facts() -> dict[str, str]:
    """What the figures depend on: processor, cores that may be used, versions."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts = {"processor": _processor(), "cores": str(cores), "python": platform.python_version()}
    return facts | {name: version(name) for name in VERSIONS}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
