"""`mammofed site import` of a small hospital and of one four times as large: memory, time, and what a second run costs.

Films are small (56 x 48 pixels at 4 mm), so that what is seen is the import and not the decoder; the section `films`
has the decoders at full size. Each import is a process of its own, as at a hospital.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import yaml

from client.ingest.example import write_example
from shared_model.errors import MammoFedError
from simulations.benchmarks.table import Row
from simulations.hospitals.defaults import default_hospitals
from simulations.population import generate

FEW, MANY = 500, 2000


def measure() -> list[Row]:
    """Ratios of `MANY` women to `FEW`, and of the second import to the first.

    Raises:
        MammoFedError: an import failed.
    """
    with tempfile.TemporaryDirectory(prefix="mammofed-bench-") as folder:
        few, many = (_Hospital(Path(folder) / str(women), women) for women in (FEW, MANY))
        small, first, again = few.imported(), many.imported(), many.imported()
    films = first["films"]
    return [
        Row(name=f"memory of the importer, {MANY} women", value=first["bytes"] / 1e6, unit="MB",
            against=f"{FEW} women", ratio=first["bytes"] / small["bytes"], at_most=1.25),
        Row(name="first import, each film", value=1e3 * first["seconds"] / films, unit="ms", against=f"{FEW} women",
            ratio=(first["seconds"] / films) / (small["seconds"] / small["films"]), at_most=1.2),
        Row(name="second import, nothing new", value=again["seconds"], unit="s", against="the first",
            ratio=again["seconds"] / first["seconds"], at_most=0.5),
    ]  # fmt: skip


class _Hospital:
    """A synthetic hospital and its site.yaml."""

    def __init__(self, folder: Path, women: int) -> None:
        population = default_hospitals(sites=1, patients=women, held_out=8, seed=0, film_height=56, film_width=48,
                                       film_spacing_mm=4.0, conspicuity=5.0)  # fmt: skip
        source = generate(replace(population, hospitals=population.hospitals[:1]), folder / "made",
                          workers=os.cpu_count() or 1)[population.hospitals[0].name]  # fmt: skip
        self.films = sum(1 for path in (source / "dicom").rglob("*") if path.is_file())
        self.path = write_example(folder / "site")
        values = yaml.safe_load(self.path.read_text("utf-8"))
        values["films"] = [{"kind": "folder", "path": str(source / "dicom")}]
        values["clinical"] = [{"kind": "csv", "path": str(source / "clinical.csv")}]
        self.path.write_text(yaml.safe_dump(values), "utf-8")

    def imported(self) -> Mapping[str, float]:
        """One import: seconds, films, greatest resident bytes of the importer itself."""
        began = time.monotonic()
        process = subprocess.Popen([sys.executable, "-m", "mammofed", "site", "import", str(self.path)],
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise MammoFedError("an import failed", found=f"status {os.waitstatus_to_exitcode(status)}",
                                remedy=f"run `mammofed site import {self.path}`")  # fmt: skip
        return {"seconds": time.monotonic() - began, "films": self.films, "bytes": usage.ru_maxrss * 1024}
