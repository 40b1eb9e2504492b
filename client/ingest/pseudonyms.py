"""Keyed pseudonyms of patients; called by the importer wherever a patient is named outside of its memory."""

from __future__ import annotations

import hashlib
import hmac

from shared_model.errors import CohortError, ConfigError

LENGTH = 16  # hex letters, 64 bits: two of a million patients share one with a chance below 1 in 30 million


class Pseudonyms:
    """Patient id -> first 16 hex letters of HMAC-SHA256(key, id) (RFC 2104).

    Keyed, because ids are short and countable: an unkeyed hash is undone by hashing all of them. The key stays with the
    importer; whoever holds it can link, nobody else can.

    Args:
        key: at least 16 secret bytes of this site.
    """

    def __init__(self, key: bytes) -> None:
        if len(key) < 16:
            raise ConfigError("the importer's key is too short", found=f"{len(key)} bytes", expected="at least 16",
                              remedy="make one with `openssl rand -out importer.key 32`")  # fmt: skip
        self._key = key
        self._owners: dict[str, str] = {}

    def of(self, patient_id: str) -> str:
        """The pseudonym; "" for an empty id.

        Raises:
            CohortError: two ids share a pseudonym (then another key has to be used).
        """
        if not patient_id:
            return ""
        pseudonym = hmac.new(self._key, patient_id.encode(), hashlib.sha256).hexdigest()[:LENGTH]
        if self._owners.setdefault(pseudonym, patient_id) != patient_id:
            raise CohortError("two patients share a pseudonym", found=pseudonym, remedy="prepare with another key")
        return pseudonym
