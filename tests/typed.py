"""A command of mammofed in a process of its own, as a person types it in a terminal."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@contextmanager
def typed(*words: object) -> Iterator[subprocess.Popen[str]]:
    """`mammofed WORDS`, killed where the test leaves it running."""
    process = subprocess.Popen(
        [sys.executable, "-m", "mammofed", *map(str, words)], cwd=ROOT,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # Whoever runs tests in a shell's background has Ctrl-C ignored, and so would have this.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()
