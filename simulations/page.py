"""The live page beside a simulation (`monitor=web`): the monitor in a process of its own while the study runs.

A process of its own, because whatever it costs must not be taken from the round loop's interpreter.
"""

from __future__ import annotations

import contextlib
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from shared_model import guard

LAST_LOOK_S: Final = 2.5  # a page looks once a second: its readers see the end before it goes
STOP_S: Final = guard.GRACE_S + guard.KILL_S + 5.0  # a guard that is killed leaves the page behind
START_S: Final = 20.0  # an interpreter and a socket; a second on a machine that is not busy


@contextlib.contextmanager
def live_page(settings: Mapping[str, Any], run_dir: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Serve the page of `run_dir` inside the block, where `settings` (the group `monitor`) say so. A page that cannot
    be served is said and costs the study nothing."""
    if settings.get("kind", "none") != "web":
        yield
        return
    options = ["--port", str(settings.get("port", 8787)), *([] if settings.get("open", True) else ["--no-open"])]
    command = [sys.executable, "-P", "-m", "mammofed", "monitor", str(run_dir), *options]
    process = subprocess.Popen(  # the guard ends it however this process ends
        [sys.executable, guard.__file__, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(process, lines), daemon=True).start()
    try:
        with contextlib.suppress(queue.Empty):  # said from here: a rehearsal takes standard output for itself at times
            say(lines.get(timeout=START_S))
        yield
        if process.poll() is None:
            _last_look(settings, say)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _read(process: subprocess.Popen[str], lines: queue.SimpleQueue[str]) -> None:
    """The address, or whatever keeps the page from being served; the rest is read so that the pipe never fills."""
    assert process.stdout is not None
    broken, last = False, ""
    for line in process.stdout:
        last = line.strip() or last
        broken = broken or last.startswith("Traceback")
        if not broken:
            lines.put(last)
    if broken:
        lines.put(f"The live page could not be served: {last}")


def _last_look(settings: Mapping[str, Any], say: Callable[[str], None]) -> None:
    if not settings.get("stay", False):
        time.sleep(LAST_LOOK_S)
        return
    say("The page stays until Ctrl-C.")
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()
