"""Reads values of an untrusted data set the way `shared_model.imaging.header` reads those of a file; called by
deidentifier.

A data set may be raw (as received), converted by whoever looked at it, or made in memory; all three give the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset

_LIMIT = 4096  # bytes of a text that header looks at


class Damaged(Exception):
    """A value that pydicom cannot convert; without its text, which may repeat it."""


def texts(ds: Dataset, tag: int) -> list[str]:
    """All values of a text element, stripped of padding; [] when absent."""
    element: Any = ds.get_item(tag)  # of a type that pydicom's annotations do not tell: None, raw or converted
    if element is None:
        return []
    value: Any = element.value
    if isinstance(value, bytes):
        parts = value[:_LIMIT].decode("latin-1").split("\\")
    elif isinstance(value, str) or not isinstance(value, Sequence):
        parts = ("" if value is None else str(value))[:_LIMIT].split("\\")
    else:
        parts = [str(part)[:_LIMIT] for part in value] or [""]
    return [part.strip(" \0") for part in parts]


def integer(ds: Dataset, tag: int) -> int | None:
    """First value of a US or SS element as an unsigned 16-bit number; None when absent or of another kind."""
    element: Any = ds.get_item(tag)  # of a type that pydicom's annotations do not tell: None, raw or converted
    if element is None:
        return None
    value: Any = element.value
    if isinstance(value, bytes):
        little = not isinstance(element, RawDataElement) or element.is_little_endian
        return int.from_bytes(value[:2], "little" if little else "big") if len(value) >= 2 else None
    if isinstance(value, Sequence) and not isinstance(value, str):
        value = value[0] if value else None
    return value & 0xFFFF if isinstance(value, int) else None


def converted(ds: Dataset, tag: int) -> Any:
    """The value as pydicom gives it, None when absent.

    Raises:
        Damaged: it cannot be converted.
    """
    if tag not in ds:
        return None
    try:
        return ds[tag].value
    except Exception:  # pydicom raises almost any type; its text may repeat header values
        raise Damaged from None


def decoded(ds: Dataset, tag: int) -> str:
    """A text in the data set's own character set, "" when absent or damaged."""
    try:
        value = converted(ds, tag)
    except Damaged:
        return ""
    return "" if value is None else str(value).strip(" \0")
