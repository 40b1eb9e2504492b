"""A protocol as bytes: how it is hashed, and how it lies on a disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from shared_model.bounded import json_object, read_at_most
from shared_model.errors import ProtocolError

MAX_PROTOCOL_BYTES = 1 << 20  # a protocol of a hundred sites has some 30 KB


def canonical(values: object) -> bytes:
    """The bytes that are hashed: JSON with sorted keys and no spaces."""
    return json.dumps(values, sort_keys=True, separators=(",", ":")).encode()


def read_file(path: Path) -> bytes:
    """The content of a protocol file.

    Raises:
        ProtocolError: the file cannot be read, or is too large.
    """
    return read_at_most(path, MAX_PROTOCOL_BYTES, error=ProtocolError, what=f"the protocol {path}")


def content_of(data: bytes | str, source: str) -> tuple[dict[str, Any], Any]:
    """The values of a protocol, and the hash stated in the envelope around them; None where it came without one.

    Neither is checked any further.

    Raises:
        ProtocolError: too large, or not a JSON object.
    """
    if len(data) > MAX_PROTOCOL_BYTES:
        raise ProtocolError(f"{source} is too large", found=len(data), expected=f"at most {MAX_PROTOCOL_BYTES} bytes")
    values = json_object(data, error=ProtocolError, source=source)
    if set(values) == {"protocol", "sha256"}:
        return values["protocol"], values["sha256"]
    return values, None
