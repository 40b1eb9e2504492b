"""What each derived key of a secure sum is for, in words that both owners write alike; used by both ends."""

from __future__ import annotations

from shared_model.secagg import masks
from shared_model.secagg.documents import Keys


def about_parcel(session: str, sender: Keys, receiver: Keys) -> tuple[str, ...]:
    """For sealing shares: one direction, one pair of keys, one sum."""
    return ("parcel", session, sender.site, receiver.site, sender.sealing_key, receiver.sealing_key)


def pair_mask_key(session: str, own: Keys, other: Keys, *, private: bytes) -> bytes:
    """Key of the mask that two sites share; `private` belongs to `own.mask_key`.

    Raises:
        MessageError: see :func:`masks.agree`.
    """
    low, high = sorted((own, other), key=lambda keys: keys.site)
    return masks.agree(private, other.mask_key, "mask", session, low.site, high.site, low.mask_key, high.mask_key)


def self_mask_key(session: str, site: str, seed: bytes) -> bytes:
    """Key of the mask that only a site's own seed makes."""
    return masks.derive(seed, "self", session, site)
