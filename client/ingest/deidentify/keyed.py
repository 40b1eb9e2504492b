"""What the importer's key turns identifiers into; called by deidentifier. Pure functions of the key and the value.

Everything is HMAC-SHA256 (RFC 2104) under a key of its own for each purpose, derived from the importer's: whoever has
seen UIDs cannot compute pseudonyms from them, and the other way round. Without the key nothing can be undone by trying
all identifiers, which are short and countable.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from datetime import timedelta

from shared_model.imaging.vocabulary import calendar

_SHIFT_DAYS = 3652  # ten years: dates of an exam then say nothing, and ages of machines and methods stay plausible
_SHIFT_SECONDS = 7200  # two hours; more would carry exams of a working day over midnight, and their order with them
_DAY = 86_400_000_000  # microseconds
_TIME = re.compile(r"([01][0-9]|2[0-3])(?:([0-5][0-9])(?:([0-5][0-9]|60)(?:\.([0-9]{1,6}))?)?)?")


class Keyed:
    """The derived keys. Its representation shows none of them."""

    __slots__ = ("_days", "_seconds", "_uids")

    def __init__(self, key: bytes) -> None:
        # A purpose begins with a zero byte, which no patient id does: those are stripped of it.
        self._uids, self._days, self._seconds = (
            _mac(key, b"\0mammofed deidentify 1 " + purpose) for purpose in (b"uid", b"days", b"seconds")
        )

    def uid(self, uid: str) -> str:
        """`2.25.` and the number of a UUID (PS3.5 B.2) of version 8, RFC 9562 5.8; "" for an empty UID."""
        uid = uid.strip(" \0")
        if not uid:
            return ""
        number = int.from_bytes(_mac(self._uids, uid.encode())[:16], "big")
        number = number & ~(0xF << 76) | 0x8 << 76  # version
        number = number & ~(0x3 << 62) | 0x2 << 62  # variant
        return f"2.25.{number}"

    def shift_days(self, pseudonym: str) -> int:
        """-3652..-1: all dates of one patient move by the same number of days, back."""
        return -1 - int.from_bytes(_mac(self._days, pseudonym.encode())[:8], "big") % _SHIFT_DAYS

    def shift_seconds(self, pseudonym: str) -> int:
        """-7200..7200: all times of day of one patient move by the same number of seconds."""
        drawn = int.from_bytes(_mac(self._seconds, pseudonym.encode())[:8], "big")
        return drawn % (2 * _SHIFT_SECONDS + 1) - _SHIFT_SECONDS

    def date(self, pseudonym: str, date: str) -> str:
        """YYYYMMDD moved by the patient's days; "" where it is no date."""
        day = calendar(date)
        if day is None:
            return ""
        try:
            return (day + timedelta(days=self.shift_days(pseudonym))).isoformat().replace("-", "")
        except OverflowError:  # a year below 11
            return ""

    def time(self, pseudonym: str, time: str) -> str:
        """TM value as HHMMSS.FFFFFF moved by the patient's seconds, within the day; "" where it is no time."""
        match = _TIME.fullmatch(time)
        if match is None:
            return ""
        hours, minutes, seconds = (int(part or 0) for part in match.groups()[:3])
        fraction = int((match.group(4) or "").ljust(6, "0"))
        moved = ((hours * 60 + minutes) * 60 + seconds + self.shift_seconds(pseudonym)) * 1_000_000 + fraction
        whole, fraction = divmod(min(max(moved, 0), _DAY - 1), 1_000_000)
        return f"{whole // 3600:02d}{whole // 60 % 60:02d}{whole % 60:02d}.{fraction:06d}"


def _mac(key: bytes, message: bytes) -> bytes:
    return hmac.new(key, message, hashlib.sha256).digest()
