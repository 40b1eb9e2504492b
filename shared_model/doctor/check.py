"""One finding of a doctor and all of them together; plain values, so that a table, a page and a script show the same.

`words` and `remedy` may leave the building (a site mails the page to its coordinator), so no path, no address of the
hospital's network and no exact number of patients stands in them; `local` is for the terminal of the machine alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from shared_model.errors import DoctorError, MammoFedError

_PATH = re.compile(r"(?<![\w.:/])(?:~|\.{1,2})?/[^\s;:,()'\"]+")
_USER = re.compile(r"\b(uid|user) \d+", re.IGNORECASE)


class Level(StrEnum):
    """green: fine. amber: works, but somebody should look. red: does not work, or must not."""

    GREEN = "green"
    AMBER = "amber"
    RED = "red"


_ORDER = tuple(Level)


@dataclass(frozen=True, kw_only=True)
class Check:
    """A finding. name: stable, for scripts. words: what was found; remedy: what to do, "" where nothing is."""

    name: str
    title: str
    level: Level
    words: str
    remedy: str = ""
    local: str = ""

    def __post_init__(self) -> None:
        assert bool(self.remedy) == (self.level is not Level.GREEN), f"{self.name}: who finds a fault says what to do"


def green(name: str, title: str, words: str, *, local: str = "") -> Check:
    """A check that is fine."""
    return Check(name=name, title=title, level=Level.GREEN, words=words, local=local)


def amber(name: str, title: str, words: str, *, to_do: str, local: str = "") -> Check:
    """A check that somebody should look at."""
    return Check(name=name, title=title, level=Level.AMBER, words=words, remedy=to_do, local=local)


def red(name: str, title: str, words: str, *, to_do: str, local: str = "") -> Check:
    """A check that failed."""
    return Check(name=name, title=title, level=Level.RED, words=words, remedy=to_do, local=local)


def failed(name: str, title: str, error: MammoFedError, *, level: Level = Level.RED) -> Check:
    """A check that one of our errors ended: its words without paths and users; the whole of it stays in `local`.

    What this user may not read is no fault: the roles of a site are users who may not read each other's things.
    """
    if isinstance(error.__context__, PermissionError):
        return _closed(name, title, str(error))
    parts = [error.problem]
    if error.found is not None:
        parts.append(f"found: {error.found}")
    if error.expected is not None:
        parts.append(f"expected: {error.expected}")
    return Check(name=name, title=title, level=level, words=without_places("; ".join(parts)),
                 remedy=without_places(error.remedy or "look into the log of this machine, then call the coordinator"),
                 local=str(error))  # fmt: skip


def examined(name: str, title: str, look: Callable[[], Check | Sequence[Check]]) -> list[Check]:
    """Run one examination; whatever goes wrong in it is its finding and never the end of the others."""
    try:
        found = look()
    except MammoFedError as error:
        return [failed(name, title, error)]
    except PermissionError as error:
        return [_closed(name, title, str(error))]
    except OSError as error:
        return [red(name, title, f"cannot be examined: {error.strerror or type(error).__name__}",
                    to_do="run doctor as the user that owns it, and check the disk", local=str(error))]  # fmt: skip
    return [found] if isinstance(found, Check) else list(found)


def _closed(name: str, title: str, local: str) -> Check:
    return amber(name, title, "this user may not read it, so it was not examined", local=local,
                 to_do="run doctor as root, or once more as the user who owns it")  # fmt: skip


def without_places(text: str) -> str:
    """The text without absolute paths (their last part stays) and users.

    >>> without_places("/srv/north/tls.pem is open to uid 1001")
    '…/tls.pem is open to another user'
    """
    shortened = _PATH.sub(lambda found: "…/" + found.group().rstrip("/.").rpartition("/")[2], text)
    return _USER.sub("another user", shortened)


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """All findings. who: public name of the site or coordinator; role: `site`, `evaluator` or `coordinator`."""

    who: str
    role: str
    release: str
    when: str
    checks: tuple[Check, ...]

    @property
    def worst(self) -> Level:
        """The worst colour."""
        return max((check.level for check in self.checks), key=_ORDER.index, default=Level.GREEN)

    def count(self, level: Level) -> int:
        """Number of checks of one colour."""
        return sum(check.level is level for check in self.checks)

    def raise_if_red(self) -> None:
        """For the exit code of a command.

        Raises:
            DoctorError: a check is red; names them.
        """
        if self.worst is Level.RED:
            names = ", ".join(check.name for check in self.checks if check.level is Level.RED)
            raise DoctorError(f"{self.count(Level.RED)} of {len(self.checks)} checks are red", found=names,
                              expected="none", remedy="do what stands beside them, then run doctor again")  # fmt: skip
