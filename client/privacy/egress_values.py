"""What one outbound value is, and how it is protected: a row of the list that the security officer reads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, Self

from shared_model.messages import Arrays

Protection = Literal["masked", "noised", "thresholded", "scrubbed", "public", "unprotected"]
PROTECTIONS: Final[dict[Protection, str]] = {
    "masked": "hidden in a sum over sites: the coordinator learns the sum alone",
    "noised": "differential privacy for each patient, charged to the ledger before the noise was drawn",
    "thresholded": "disclosure control: small counts are withheld. No differential privacy, no epsilon",
    "scrubbed": "words of an error, without paths and pseudonyms",
    "public": "agreed on beforehand, or worked out from what the coordinator has anyway",
    "unprotected": "nothing bounds what it tells of a patient",
}  # fmt: skip
"""Every protection that a value can have, in words. None of these words is a number of another kind of promise."""


@dataclass(frozen=True, kw_only=True)
class Value:
    """One value that leaves: a tensor, or a field of a reply.

    shape: of a tensor; () for a single number or a text. bytes: as it stands in the reply. sha256: of these bytes.
    """

    name: str
    purpose: str
    shape: tuple[int, ...]
    bytes: int
    sha256: str
    protection: Protection

    @classmethod
    def of_field(cls, name: str, value: object, *, purpose: str, protection: Protection) -> Self:
        """A field or document of a reply, by its canonical JSON."""
        data = json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
        return cls(name=name, purpose=purpose, shape=(), bytes=len(data), sha256=hashlib.sha256(data).hexdigest(),
                   protection=protection)  # fmt: skip


def tensor_values(arrays: Arrays, *, purpose: str, protection: Protection) -> list[Value]:
    """Tensors in name order; the bytes hashed are little-endian float32 in C order."""
    rows = []
    for name in sorted(arrays):
        array = arrays[name].astype("<f4", order="C", copy=False)
        rows.append(Value(name=name, purpose=purpose, shape=array.shape, bytes=array.nbytes,
                          sha256=hashlib.sha256(array.data).hexdigest(), protection=protection))  # fmt: skip
    return rows


def to_text(values: Sequence[Value]) -> str:
    """Rows as one text for a field of the list."""
    return json.dumps([list(asdict(value).values()) for value in values], separators=(",", ":"))


def from_text(text: str) -> list[Value]:
    """Rows of :func:`to_text`.

    Raises:
        ValueError: no such text.
    """
    rows: Any = json.loads(text)
    found = []
    for row in rows:
        try:
            name, purpose, shape, size, sha256, protection = row
            found.append(Value(name=str(name), purpose=str(purpose), shape=tuple(map(int, shape)), bytes=int(size),
                               sha256=str(sha256), protection=protection))  # fmt: skip
        except TypeError:
            raise ValueError("not a row of values") from None
    return found
