"""Five parties of a real deployment are killed in one study; its end is, to the bit, that of the undisturbed one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

MAMMOFED = Path(sys.executable).parent / "mammofed"
HANG_S = 1500  # a bound for a machine that is busy; nothing here is timed


@pytest.mark.slow
def test_five_kills_on_real_superlink_and_supernodes(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    command = [MAMMOFED, "simulate", "faults", "--only", "deployed/five", "--json", results, "--keep", tmp_path]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=HANG_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (result,) = json.loads(results.read_text())
    assert result["faults"] == []
    assert result["end"] == "trainer, evaluator, supernode, superlink, serverapp killed, COMPLETE"
