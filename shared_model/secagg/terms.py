"""From an approved protocol to the terms of a secure sum, and back: what the coordinator opens, what a site checks.

A site takes nothing on trust that could bend the sum: with another coefficient for one site, the sum of three would be
that site's values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from shared_model.errors import PrivacyError, ProtocolError
from shared_model.protocol import Protocol
from shared_model.secagg.session import Peer, Session
from shared_model.signing import VerifyKey

UPDATE: Final = "update"  # what a site's round of training changed: trained less received weights, float32
SCORES: Final = "scores"  # a site's own test women by score, two rows of counts (shared_model.evaluation)
COUNTS: Final = "counts"  # of an exploration: a site's women by histogram (shared_model.contract.exploration)
ROOM: Final = 2  # a site has at most so many times its rounded, public number of patients (client/trainer/site)
BITS: Final = 32  # a word on the wire is as large as a weight; the step is then some 1e-8 of the bound


def quantities(protocol: Protocol) -> tuple[str, ...]:
    """What may be summed in a study."""
    if not protocol.summed:
        return ()
    if protocol.exploration is not None:
        return (COUNTS,)
    return (UPDATE, SCORES) if protocol.privacy.metrics == "joint" else (UPDATE,)


def subject_of(protocol: Protocol, *, what: str, round_number: int) -> str:
    """As :attr:`Session.subject`, before there is a session."""
    return f"{protocol.sha256}/{what}/{round_number}"


def coefficients(protocol: Protocol, what: str) -> dict[str, float]:
    """What each site's values are multiplied by: its share of the protocol's weights for an update, 1 for counts."""
    sites = protocol.federation.sites
    if what != UPDATE:
        return {site.name: 1.0 for site in sites}
    total = sum(site.weight for site in sites)
    return {site.name: site.weight / total for site in sites}


def least_bound(protocol: Protocol, what: str) -> float:
    """What the bound of a sum is at least: for counts the women that a site can have, 0 for an update.

    A value beyond the bound stops its site's part, which the coordinator sees: with bounds of its choice, attempt after
    attempt, it would find the greatest count of one site.
    """
    return 0.0 if what == UPDATE else float(ROOM * max(site.patients for site in protocol.federation.sites))


def terms_of(
    protocol: Protocol, *, what: str, round_number: int, attempt: int, keys: Mapping[str, VerifyKey],
    coordinator: VerifyKey, length: int, bound: float,
) -> Session:  # fmt: skip
    """The terms of one sum over the sites of `keys` (their trainers' public keys).

    Args:
        length: numbers in a site's vector. bound: greatest absolute value of each of them.

    Raises:
        ProtocolError: fewer than three sites, or sites that are not in the protocol.
    """
    shares = coefficients(protocol, what)
    try:
        peers = tuple(Peer(site=name, key=keys[name].hex, coefficient=shares[name]) for name in sorted(keys))
        return Session(
            release=protocol.release, study=protocol.study, protocol_sha256=protocol.sha256, round=round_number,
            attempt=attempt, what=what, coordinator=coordinator.hex, peers=peers, length=length, bound=bound, bits=BITS,
        )  # fmt: skip
    except (KeyError, ValueError):
        raise ProtocolError(
            "no secure sum can be opened over these sites", found=sorted(keys)[:8],
            expected="three or more of the protocol's, each with a key of its own",
        ) from None  # fmt: skip


def check_terms(terms: Session, protocol: Protocol, *, what: str, round_number: int, attempt: int) -> None:
    """Refuse terms that are not what the approved protocol makes of this sum; whose keys they name is
    :meth:`Session.admit`'s to judge.

    Raises:
        PrivacyError: naming the first difference.
    """
    expected: Iterable[tuple[str, object, object]] = (
        ("study", terms.study, protocol.study), ("protocol", terms.protocol_sha256, protocol.sha256),
        ("release", terms.release, protocol.release), ("quantity", terms.what, what),
        ("round", terms.round, round_number), ("attempt", terms.attempt, attempt), ("width", terms.bits, BITS),
    )  # fmt: skip
    for name, found, wanted in expected:
        if found != wanted:
            raise PrivacyError(f"the secure sum is for another {name} than its request or the approved protocol",
                               found=found, expected=wanted)  # fmt: skip
    least = least_bound(protocol, what)
    if terms.bound < least:
        raise PrivacyError("the secure sum has a bound that a site's women may reach: who falls out would tell of them",
                           found=terms.bound, expected=f"at least {least:g}")  # fmt: skip
    shares = coefficients(protocol, what)
    for peer in terms.peers:
        if shares.get(peer.site) != peer.coefficient:
            raise PrivacyError(f"the secure sum counts {peer.site} otherwise than the approved protocol: the "
                               "coordinator could read one site's values off such a sum",
                               found=peer.coefficient, expected=shares.get(peer.site, "no such site"))  # fmt: skip
