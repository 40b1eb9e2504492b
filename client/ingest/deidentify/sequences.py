"""The three sequences that the pipeline reads, rebuilt from codes and numbers; called by deidentifier."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from client.ingest.deidentify.values import Damaged, converted
from shared_model.imaging.admission import code_value
from shared_model.imaging.vocabulary import MODIFIER_CODES, VIEW_CODES

_VIEW_MODIFIERS = 0x00540222
_DESCRIPTOR, _LUT_DATA = 0x00283002, 0x00283006
_ITEMS, _ENTRIES = 16, 1 << 16


def view_codes(ds: Dataset, tag: int) -> Sequence:
    """ViewCodeSequence with known codes only; a modifier that is not known stays as an item without a code.

    Raises:
        Damaged: pydicom cannot read it.
    """
    items = Sequence()
    for item in _items(ds, tag):
        kept = _coded(item, VIEW_CODES)
        if _VIEW_MODIFIERS in item:
            modifiers = [_coded(modifier, MODIFIER_CODES) for modifier in _items(item, _VIEW_MODIFIERS)]
            kept.add_new(_VIEW_MODIFIERS, "SQ", modifiers)
        items.append(kept)
    return items


def tables(ds: Dataset, tag: int) -> Sequence:
    """A modality or VOI LUT sequence: descriptor and data of its first item (PS3.3 C.11.1, C.11.2), nothing else.

    Raises:
        Damaged: pydicom cannot read it.
    """
    items = Sequence()
    for item in list(_items(ds, tag))[:1]:
        kept = Dataset()
        for name in (_DESCRIPTOR, _LUT_DATA):
            # What is damaged is left out, and missed when the table is applied.
            with suppress(Damaged):
                value = converted(item, name)
                if value is not None:
                    kept[name] = _descriptor(value, str(item[name].VR)) if name == _DESCRIPTOR else _entries(value)
        items.append(kept)
    return items


def _items(ds: Dataset, tag: int) -> Iterator[Dataset]:
    value = converted(ds, tag)
    if value is None:
        return
    if not isinstance(value, Sequence):
        raise Damaged
    try:
        yield from list(value)[:_ITEMS]
    except Exception:  # items are parsed when they are looked at
        raise Damaged from None


def _coded(item: Dataset, codes: dict[str, str]) -> Dataset:
    """Code value, scheme and meaning (PS3.3 8) where the code is known, else an empty item."""
    kept = Dataset()
    try:
        value = code_value(item)
    except Exception:
        raise Damaged from None
    if value in codes:
        kept.CodeValue, kept.CodeMeaning = value, codes[value]
        kept.CodingSchemeDesignator = "SCT" if value.isdigit() else "SRT"
    return kept


def _descriptor(value: Any, vr: str) -> DataElement:
    try:
        numbers = [int(number) for number in value]
    except (TypeError, ValueError):
        raise Damaged from None
    signed = vr == "SS" and all(-(1 << 15) <= number < 1 << 15 for number in numbers)
    return DataElement(_DESCRIPTOR, "SS" if signed else "US", numbers if signed else [n & 0xFFFF for n in numbers])


def _entries(value: Any) -> DataElement:
    if isinstance(value, bytes):
        data = value[: 2 * _ENTRIES]
    else:
        try:
            data = np.asarray(value, dtype=np.int64).astype("<u2").ravel()[:_ENTRIES].tobytes()
        except (TypeError, ValueError, OverflowError):
            raise Damaged from None
    return DataElement(_LUT_DATA, "OW", data)
