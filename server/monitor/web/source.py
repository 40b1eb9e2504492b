"""What the page needs to know of studies; implemented by `runs` (run directories) and `member` (the watch stream)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from server.monitor.view import AlarmView, MemberView, StudyView

Alarms = Callable[[StudyView], Sequence[AlarmView]]


class Source(Protocol):
    """Studies by name; safe between threads. A name that is not in `names` has no view."""

    @property
    def first(self) -> str | None:
        """The study to begin with; None: the first of `names`."""
        ...

    @property
    def member(self) -> MemberView | None:
        """The member who watches from its own place; None at the coordinator."""
        ...

    def names(self) -> Sequence[str]:
        """All studies, in the order in which they are offered."""
        ...

    def head(self, name: str) -> StudyView | None:
        """A view for the list: without rounds, events and alarms."""
        ...

    def read(self, name: str, since: str | None) -> StudyView | None:
        """What is new since a cursor, with the alarms of the whole."""
        ...

    def whole(self, name: str) -> StudyView | None:
        """All of a study."""
        ...

    def all(self) -> list[StudyView]:
        """All of every study; for metrics."""
        ...
