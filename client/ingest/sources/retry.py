"""Trying again with longer and longer pauses; used by gather and the outbox."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")


class LostError(Exception):
    """The other side is away for now: not reachable, hung up, silent, or busy. Trying again may help.

    words: what happened, free of identities.
    """

    def __init__(self, words: str) -> None:
        self.words = words
        super().__init__(words)


@dataclass
class Backoff:
    """Pauses of 1, 2, 4, ... seconds up to `longest_seconds`, each shortened by up to a quarter at random.

    At random, so that the importers of several hospitals do not all come back in the second in which a shared archive
    does. sleep: for tests.
    """

    retries: int
    first_seconds: float = 1.0
    longest_seconds: float = 60.0
    sleep: Callable[[float], None] = time.sleep
    _random: random.Random = field(default_factory=random.Random, repr=False)

    def pause(self, attempt: int) -> None:
        """Wait before attempt number `attempt`, counted from 1 for the first repetition."""
        longest = min(self.longest_seconds, self.first_seconds * 2.0 ** min(attempt - 1, 30))
        self.sleep(longest * (1 - self._random.random() / 4))

    def run(self, work: Callable[[], T]) -> T:
        """What `work` returns, tried at most 1 + retries times.

        Raises:
            LostError: of the last attempt.
        """
        for attempt in range(self.retries + 1):
            if attempt:
                self.pause(attempt)
            try:
                return work()
            except LostError:
                if attempt == self.retries:
                    raise
        raise AssertionError("unreachable")
