"""What the difference between two exact sums would tell; worked out from approved protocols for `site review`.

A masked sum hides a site among three or more. Of two exact sums of the same kind, over sites that differ in one or two,
the difference tells what those counted, and no key is needed for it. Noise that each site adds itself stays noise
whatever is subtracted, so a noised sum is never named here.
"""

from __future__ import annotations

from pathlib import Path

from shared_model.bounded import json_object, read_at_most
from shared_model.errors import MammoFedError, ProtocolError
from shared_model.protocol import Protocol
from shared_model.signed_protocol import MAX_SIGNED_BYTES
from shared_model.strategies import LEAST_SUM_SITES


def told_apart(protocol: Protocol, approved: Path) -> list[str]:
    """One sentence for each earlier sum that would tell something together with this one.

    Args:
        protocol: proposed, or approved itself.
        approved: the trainer's folder of approved protocols. What cannot be read there is named, not passed over.
    """
    kind = _exact(protocol)
    if kind is None:
        return []
    own, found = _sites(protocol), []
    for path in sorted(approved.glob("*.json")):
        try:
            other = _read(path)
        except MammoFedError:
            found.append(f"{path.stem} cannot be read by this release, so it is not compared with it")
            continue
        apart = sorted(own ^ _sites(other))
        if other.sha256 != protocol.sha256 and _exact(other) == kind and 0 < len(apart) < LEAST_SUM_SITES:
            found.append(f"{other.study} sums {kind} exactly over nearly the same sites: the difference of the two "
                         f"tells those of {' and '.join(apart)}")  # fmt: skip
    return found


def _exact(protocol: Protocol) -> str | None:
    """What a protocol sums without noise, that women are counted in; None: nothing."""
    if protocol.exploration is not None:
        return None if protocol.private else "counts of women"
    return "counts of test women" if protocol.summed and protocol.privacy.metrics == "joint" else None


def _sites(protocol: Protocol) -> set[str]:
    return {site.name for site in protocol.federation.sites}


def _read(path: Path) -> Protocol:
    data = read_at_most(path, MAX_SIGNED_BYTES, error=ProtocolError, what=f"the approved protocol {path}")
    values = json_object(data, error=ProtocolError, source=str(path))
    return Protocol.create(values.get("protocol"), source=str(path))  # type: ignore[arg-type]  # refuses what is none
