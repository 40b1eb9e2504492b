"""SuperLink with more patience for its own database; stands as `flower-superlink` in the daemon's PATH for it.

Flower gives a write five seconds to find SQLite free, then answers 500, upon which SuperNode shuts itself down. On a
busy machine 24 sites whose replies come at once reach that (`mammofed simulate fleet`). One name of Flower 1.41 is
replaced here and nowhere else; a test holds it against the pinned version.
"""

from __future__ import annotations

import sys
from typing import Final

PRAGMA: Final = "busy_timeout"
BUSY_MS: Final = "60000"


def main() -> None:
    """Run SuperLink."""
    from flwr.supercore import sql_mixin

    sql_mixin.SQLITE_PRAGMAS = patient(sql_mixin.SQLITE_PRAGMAS)  # type: ignore[attr-defined, assignment]
    from flwr.superlink.cli import flower_superlink

    sys.exit(flower_superlink())  # type: ignore[func-returns-value]


def patient(pragmas: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    """Flower's settings of each connection, with a longer wait."""
    return tuple((name, BUSY_MS if name == PRAGMA else value) for name, value in pragmas)
