"""Six words for a public key, so that two people can compare it over the phone; used at enrolment and by signing.

    >>> same_words("Acorn  banjo-CEDAR", "acorn banjo cedar")
    True

The words come from `words.txt`, 2048 of them, so six carry 66 bits. Whoever sits between the two and wants another key
with the same six words has to make 2^66 keys on average, and to run scrypt (RFC 7914; 16 MiB and some 0.05 s) on each:
about 2^85 Salsa20/8 blocks in all. Two keys *of one's own* with the same words take 2^33 such keys, and deceive nobody
about who holds them.

The list is our own: common English words of 4 to 11 letters, of which any two differ in at least three phonemes (CMU
Pronouncing Dictionary, stress left out; checked when the list was made) and two letters (checked by a test). It is a
contract like an exit code: one changed word would change what people read out, so its hash is pinned here.
"""

from __future__ import annotations

import functools
import hashlib
import re
from importlib.resources import files
from typing import Final

from shared_model.errors import StorageError

WORDS: Final = 6
LIST_SIZE: Final = 2048
BITS: Final = 66  # WORDS * log2(LIST_SIZE)
WORDS_SHA256: Final = "4149cca42e7e0bd28c340016b29eecd6fd664b447fc1f20cfde4cce74a5c455e"

_SCRYPT_N: Final = 1 << 14  # with r = 8: 16 MiB, the interactive setting of RFC 7914's author (Percival, 2009)


@functools.cache
def words() -> tuple[str, ...]:
    """The 2048 words in alphabetical order.

    Raises:
        StorageError: the installed list is not the one of this release.
    """
    data = files("shared_model").joinpath("words.txt").read_bytes()
    if hashlib.sha256(data).hexdigest() != WORDS_SHA256:
        raise StorageError("the list of words for fingerprints was changed", remedy="install the release again")
    return tuple(data.decode("ascii").split())


def six_words(public_key: bytes) -> str:
    """Fingerprint of a public key: six words with a space between.

    Args:
        public_key: DER SubjectPublicKeyInfo of a key of any kind (its kind is part of those bytes).
    """
    digest = hashlib.scrypt(public_key, salt=b"mammofed fingerprint 1", n=_SCRYPT_N, r=8, p=1, dklen=9)
    number = int.from_bytes(digest, "big") >> (8 * len(digest) - BITS)
    listed = words()
    places = [(number >> (11 * place)) % LIST_SIZE for place in reversed(range(WORDS))]
    return " ".join(listed[place] for place in places)


def same_words(typed: str, fingerprint: str) -> bool:
    """Whether somebody typed the words of `fingerprint`; case, commas, hyphens and spaces do not matter."""
    return _plain(typed) == _plain(fingerprint)


def _plain(text: str) -> list[str]:
    return [word for word in re.split(r"[\s,;.\-]+", text.lower()) if word]
