"""Flower's command line with its imports done once; started by `link` where several commands follow each other.

    python -P flower_shell.py

`flwr` takes 1.5 CPU-seconds to begin, for one request that takes none: letting in a consortium of 24 would cost the
coordinator minutes. Reads one command a line from standard input (a JSON list of arguments), runs each in a process
forked for it, so that nothing is left of one in the next, and writes one line `[exit code, output, errors]` each.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

Done = tuple[int, str, str]
"""Exit code, standard output, standard error."""


class FlowerShell:
    """A context manager; its process begins with it.

    Args:
        environment: the whole of it. folder: where commands run.
    """

    def __init__(self, *, environment: Mapping[str, str], folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, env=dict(environment), cwd=folder, start_new_session=True,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End it for good."""
        self.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):  # what a process that had ended was told last
                stream.close()

    def kill(self) -> None:
        """End it, from another thread, and the command that it has forked, which is answered as one that failed."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def run(self, arguments: Sequence[str], *, timeout_s: float) -> Done:
        """Run `flwr ARGUMENTS`.

        Raises:
            TimeoutError: no answer in time; the shell was ended.
        """
        there = self._process
        assert there.stdin is not None and there.stdout is not None
        try:
            there.stdin.write(json.dumps(list(arguments)).encode() + b"\n")
            there.stdin.flush()
            if not select.select([there.stdout], [], [], timeout_s)[0]:
                self.kill()  # its answer must not be taken for that of the next
                raise TimeoutError
            code, output, errors = json.loads(there.stdout.readline())
        except (OSError, ValueError) as error:
            if isinstance(error, TimeoutError):
                raise
            return 1, "", f"Flower's command line ended ({there.poll()})"
        return int(code), str(output), str(errors)


def serve(command: Callable[[Sequence[str]], object], requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer commands until there are no more."""
    for line in requests:
        answers.write(json.dumps(forked(command, json.loads(line))).encode() + b"\n")
        answers.flush()


def forked(command: Callable[[Sequence[str]], object], arguments: Sequence[str]) -> Done:
    """Call `command` in a process of its own."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                for number, stream in ((1, output), (2, errors)):
                    os.dup2(stream.fileno(), number)
                command(arguments)
                code = 0
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else int(end.code is not None)
            except BaseException as error:
                os.write(2, f"{type(error).__name__}: {error}".encode())
            finally:
                for text in (sys.stdout, sys.stderr):
                    text.flush()
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        said = []
        for stream in (output, errors):
            stream.seek(0)
            said.append(stream.read().decode("utf-8", "replace"))
        return os.waitstatus_to_exitcode(status), said[0], said[1]


def main() -> None:
    """Serve Flower's commands."""
    from flwr.cli.app import app

    def flwr(arguments: Sequence[str]) -> Any:
        return app(list(arguments), prog_name="flwr")

    serve(flwr, sys.stdin.buffer, sys.stdout.buffer)


if __name__ == "__main__":
    main()
