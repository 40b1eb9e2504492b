"""The report as a browser draws it: in light and dark, at the width of a phone, without a complaint on its console."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from server.reporting import write_evidence_report, write_report
from simulations.baselines.evidence import evidence
from tests.handmade_run import write_run_dir
from tests.simulations.baselines.test_baselines_evidence import population

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (apt-get install chromium)"),
]
QUIET = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
         "--enable-logging=stderr")  # fmt: skip


def study_page(folder: Path) -> Path:
    write_run_dir(folder / "run")
    return write_report(folder / "run")


def comparison_page(folder: Path) -> Path:
    found = evidence("unit", "synthetic", [population(seed, held_out=200, own=120) for seed in (1, 2)],
                     specificity=0.85)  # fmt: skip
    (folder / "evidence.json").write_text(json.dumps(found))
    return write_evidence_report(folder)


def picture(folder: Path, report: Path, *, width: int, dark: bool) -> tuple[np.ndarray, str]:
    """The upper part of a page as grey values [H, W] in 0..255, and what it said on the console."""
    shot = folder / "shot.png"
    scheme = [f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
    command = [str(CHROMIUM), *QUIET, *scheme, f"--user-data-dir={folder / 'profile'}", f"--window-size={width},1600",
               f"--screenshot={shot}", report.as_uri()]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    spoken = "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)
    return np.asarray(Image.open(shot).convert("L"), dtype=np.float64), spoken


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [500, 1280])
@pytest.mark.parametrize("page", [study_page, comparison_page])
def test_page_is_drawn_legibly(
    tmp_path: Path, page: Callable[[Path], Path], width: int, dark: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simulations.baselines.evidence.REPLICATES", 20)
    grey, spoken = picture(tmp_path, page(tmp_path), width=width, dark=dark)
    assert spoken == ""
    paper = np.median(grey)
    assert (paper < 40) if dark else (paper > 240)
    ink = np.abs(grey - paper) > 120
    assert 0.005 < ink.mean() < 0.3  # words and figures, neither a blank page nor a block
    assert ink[:400].any() and ink[-800:].any()
    assert not ink[:, -6:].any()  # nothing is cut off at the right edge: wide tables scroll by themselves
