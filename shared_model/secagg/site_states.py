"""What a site holds after each step of a secure sum: small frozen documents, each with no more secrets than are needed.

Only `shared_model.secagg.site` makes them. They hold private keys: a file of them is for its owner alone (0600).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from shared_model.messages import Fields
from shared_model.protocol import Name
from shared_model.secagg.documents import (
    Directory,
    Keys,
    Masked,
    PublicKey,
    Share,
    Shares,
    Sites,
    Statement,
    Unmasking,
)
from shared_model.secagg.session import MAX_SITES

Secret = PublicKey  # 32 bytes in hexadecimal as well


class Held(Fields):
    """The two shares of one owner that this site keeps; it gives out one of them at most."""

    owner: Name
    mask_key: Share
    seed: Share


class Keyed(Fields):
    """Fresh keys were made."""

    step: Literal["keyed"] = "keyed"
    keys: Keys
    sealing_private: Secret
    mask_private: Secret


class Shared(Fields):
    """The others' keys were believed and shares sealed for them; `own` is this site's share of its own secrets."""

    step: Literal["shared"] = "shared"
    directory: Directory
    sealing_private: Secret
    mask_private: Secret
    seed: Secret
    own: Held
    shares: Shares


class Contributed(Fields):
    """The values were masked. Nothing is left that could mask again or take the mask off."""

    step: Literal["contributed"] = "contributed"
    held: tuple[Held, ...] = Field(max_length=MAX_SITES)
    masked: Masked


class Stated(Fields):
    """One list of survivors was signed; no other will be."""

    step: Literal["stated"] = "stated"
    held: tuple[Held, ...] = Field(max_length=MAX_SITES)
    sharers: Sites
    statement: Statement


class Finished(Fields):
    """One share of each owner was given out; the others are forgotten."""

    step: Literal["finished"] = "finished"
    unmasking: Unmasking


State = Keyed | Shared | Contributed | Stated | Finished
