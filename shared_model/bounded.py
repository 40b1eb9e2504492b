"""Files that nobody trusts yet, read up to a limit: a settings file of some gigabytes must not fill the memory."""

from __future__ import annotations

from pathlib import Path

from shared_model.errors import MammoFedError


def read_at_most(
    path: Path, limit: int, *, error: type[MammoFedError], what: str | None = None, remedy: str | None = None
) -> bytes:
    """The content of a file of at most `limit` bytes.

    Args:
        error: what is raised. what: the file in words, "the roster /srv/roster.json"; None: its path.
        remedy: what the reader should do about a file that cannot be read.

    Raises:
        MammoFedError: `error`: absent, unreadable or too large.
    """
    name = what if what is not None else str(path)
    try:
        with path.open("rb") as stream:
            data = stream.read(limit + 1)
    except OSError as fault:
        raise error(f"cannot read {name}: {fault.strerror}", remedy=remedy) from None
    if len(data) > limit:
        raise error(f"{name} is too large", expected=f"at most {limit} bytes")
    return data
