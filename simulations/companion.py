"""Alarms and writers beside a simulation (`monitor.writers=[mlflow]`, `monitor.alarms=FILE`), in a process of its own.

It ends when this process does, however it ends: the kernel closes the pipe that it listens to.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from server.monitor.companion import command_of
from server.monitor.rules import MonitorFile
from server.monitor.writers import check_writers

END_S: Final = 60.0  # a tracking server's last answers


def check_monitor(settings: Mapping[str, Any]) -> None:
    """Refuse what the companion would refuse, before anything is made.

    Raises:
        ConfigError: naming the setting.
    """
    check_writers(_writers(settings))
    if settings.get("alarms"):
        MonitorFile.read(Path(settings["alarms"]))


@contextlib.contextmanager
def companion(settings: Mapping[str, Any], run_dir: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Run it inside the block, where `settings` (the group `monitor`) ask for it. What it says is in
    `monitor/monitor.log`; whatever becomes of it costs the study nothing."""
    writers, file = _writers(settings), settings.get("alarms")
    if not writers and not file:
        yield
        return
    log = run_dir / "monitor" / "monitor.log"
    log.parent.mkdir(exist_ok=True)
    command = command_of(run_dir.absolute(), writers=writers, file=Path(file).absolute() if file else None,
                         until_eof=True)  # fmt: skip
    with log.open("ab") as stream:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=stream, stderr=stream, start_new_session=True)
    assert process.stdin is not None
    try:
        yield
    finally:
        if process.poll() is not None:
            say(f"The monitor's writers and alarms ended early ({process.returncode}): see {log}")
        process.stdin.close()
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            say(f"The monitor's writers are slow, and are not waited for: see {log}")
            process.kill()
            process.wait()


def _writers(settings: Mapping[str, Any]) -> list[str]:
    return [str(name) for name in settings.get("writers") or []]
