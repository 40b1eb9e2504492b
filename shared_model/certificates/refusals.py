"""Why a member is not admitted, as its site reads it; both ends know the same reasons."""

from __future__ import annotations

from typing import Final

REFUSALS: Final[dict[str, str]] = {
    "unknown": "the coordinator does not know this certificate; enrol again with a new invitation",
    "unconfirmed": "the coordinator has not confirmed this site's fingerprints yet; compare them over the phone",
    "revoked": "the coordinator has revoked this site; call the coordinator, who can send a new invitation "
    "(`mammofed site init --again`)",
    "superseded": "a newer certificate of this site has taken the place of this one; start with the newest",
    "expired": "the certificate has run out; ask the coordinator for a new invitation and enrol again "
    "(`mammofed site init --again`)",
    "not_yet_valid": "the certificate is not valid yet; check this machine's clock (NTP)",
    "wrong_role": "this door is for another role; connect to the address that belongs to yours",
    "foreign": "the other end does not accept the issuer of this certificate; enrol with this coordinator",
    "busy": "this site has too many connections open; end a second tunnel or SuperNode if one is running",
    "unavailable": "the coordinator cannot read its registry and admits nobody; it has to repair it, then this goes on",
}
"""Reason -> what the site reads: why it is not admitted and what to do."""

REFUSED: Final = "MammoFed-"
"""Before the reason, in the reason phrase of the one answer that a refused connection gets (RFC 9112 4)."""
