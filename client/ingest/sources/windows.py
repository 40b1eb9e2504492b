"""Asks for all studies of a period in pieces that no archive cuts; called by dimse and dicomweb.

Archives bound their answers, and not all say so: Orthanc 1.10 ends a list that it cut with "success" where the query
names a modality. So a long list is believed only once its halves have been asked for too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date

from shared_model.errors import SourceError

TRUSTED = 100  # answers: no archive's own limit is below this
Ask = Callable[["Window"], tuple[list[str], bool]]
"""(StudyInstanceUIDs, whether the archive said that it cut the list) of a window."""


@dataclass(frozen=True)
class Window:
    """Days first..last; hours of the day (both included) only where it is one day."""

    first: date
    last: date
    from_hour: int = 0
    to_hour: int = 23

    @property
    def dates(self) -> str:
        """Range matching (PS3.4 C.2.2.2.5) for StudyDate."""
        return f"{self.first:%Y%m%d}-{self.last:%Y%m%d}"

    @property
    def times(self) -> str:
        """The same for StudyTime, "" for whole days: a study without a time is in no range."""
        whole = (self.from_hour, self.to_hour) == (0, 23)
        return "" if whole else f"{self.from_hour:02d}0000-{self.to_hour:02d}5959.999999"

    def halves(self) -> tuple[Window, Window] | None:
        """Both halves; None for an hour."""
        if self.first < self.last:
            middle = self.first.toordinal() + (self.last - self.first).days // 2
            return Window(self.first, date.fromordinal(middle)), Window(date.fromordinal(middle + 1), self.last)
        if self.from_hour < self.to_hour:
            middle = (self.from_hour + self.to_hour) // 2
            return (Window(self.first, self.last, self.from_hour, middle),
                    Window(self.first, self.last, middle + 1, self.to_hour))  # fmt: skip
        return None


def all_studies(window: Window, ask: Ask, *, name: str, trusted: int | None = None) -> Iterator[str]:
    """StudyInstanceUIDs of a window, some more than once.

    Args:
        name: of the archive, for the message. trusted: answers up to which a list is believed; None: TRUSTED.

    Raises:
        SourceError: the archive cuts its list even for one hour.
    """
    found, cut = ask(window)
    yield from found
    if not cut and len(found) < (TRUSTED if trusted is None else trusted):
        return
    halves = window.halves()
    if halves is not None:
        for half in halves:
            yield from all_studies(half, ask, name=name, trusted=trusted)
    elif cut:
        raise SourceError(
            f"{name} cuts its lists even for one hour", expected="all studies of an hour",
            remedy="have the archive's limit of answers raised, or import by a list of patients",
        )  # fmt: skip
