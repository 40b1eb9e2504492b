"""A thread that does the same again and again while a block runs: watches, beats, samples."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self


class Repeating(ABC):
    """A context manager; the thread begins with the block and has ended, or is not waited for any longer, after it.

    Args:
        name: of the thread. every_s: seconds between turns, the first one after so long.
        end_s: seconds that the block's end waits for the turn under way; None: as long as it takes.
    """

    def __init__(self, name: str, *, every_s: float, end_s: float | None = None) -> None:
        self._every_s, self._end_s, self._over = every_s, end_s, threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join(self._end_s)

    @abstractmethod
    def _turn(self) -> None:
        """Do it once; an error ends the thread."""

    def _run(self) -> None:
        while not self._over.wait(self._every_s):
            self._turn()
