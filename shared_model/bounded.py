"""Files that nobody trusts yet, read up to a limit: a settings file of some gigabytes must not fill the memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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


def json_object(data: bytes | str, *, error: type[MammoFedError], source: str) -> dict[str, Any]:
    """A JSON object from bytes or text that were bounded before.

    Raises:
        MammoFedError: `error`: no JSON, nested too deeply, or no object. source: what it says of where they are from.
    """
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as fault:
        raise error(f"{source} is not JSON: {fault}") from None
    if not isinstance(values, dict):
        raise error(f"{source} is not a JSON object", found=type(values).__name__)
    return values
