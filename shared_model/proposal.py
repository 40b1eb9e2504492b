"""A study protocol as a person reads and edits it; written by `simulate protocol`, read by `server propose`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import yaml

from shared_model.bounded import read_at_most
from shared_model.errors import ProtocolError
from shared_model.plain_yaml import check_plain
from shared_model.protocol import MAX_PROTOCOL_BYTES, Protocol

HEAD: Final = """\
# A MammoFed study protocol, unsigned. What each field means: shared_model/protocol/.
# Whoever changes epsilon, sampling rate, steps or rounds by hand changes what the noise promises: calibrate it anew
# with `mammofed simulate protocol`, which wrote this file.
"""


def protocol_yaml(protocol: Protocol) -> str:
    """The file's text; :func:`read_protocol` gives the same protocol again, to its hash."""
    return HEAD + yaml.safe_dump(protocol.model_dump(mode="json"), sort_keys=False, width=120)


def read_protocol(path: Path) -> Protocol:
    """Read a protocol that a person may have edited, as YAML or as the JSON of a run directory.

    Raises:
        ProtocolError: unreadable, too large, no YAML, aliases or repeated keys, or naming every field that is wrong.
    """
    data = read_at_most(path, MAX_PROTOCOL_BYTES, error=ProtocolError, what=f"the protocol {path}")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise ProtocolError(f"{path} is no text", expected="YAML in UTF-8") from None
    try:
        check_plain(text, source=str(path), error=ProtocolError)
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        words = " ".join(str(error).split())[:300]
        raise ProtocolError(f"{path} is no YAML: {words}", remedy="correct the line that it names") from None
    if not isinstance(values, dict):
        raise ProtocolError(f"{path} is no protocol", found=type(values).__name__, expected="fields with values")
    if set(values) == {"protocol", "sha256"}:  # a run directory's protocol.json
        return Protocol.from_json(json.dumps(values, default=str), source=str(path))
    return Protocol.create({str(key): value for key, value in values.items()}, source=str(path))
