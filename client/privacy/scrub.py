"""Words that may leave a site: without its paths and without pseudonyms; asked by the egress gate."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

MOST_WORDS: Final = 500  # characters

_PATH: Final = re.compile(r"(?<!\w)(?:~|\.{1,2})?/[^\s'\";,:()]+")
_TWICE: Final = re.compile(r"(?:<path>){2,}")
_PSEUDONYM: Final = re.compile(r"\b[0-9a-f]{16}\b")


def without_identity(words: str, *, paths: Iterable[Path]) -> str:
    """`words` with `paths`, whatever looks like one, and pseudonyms replaced; 500 characters."""
    for path in paths:
        words = words.replace(str(path), "<path>")
    words = _TWICE.sub("<path>", _PATH.sub("<path>", words))
    return _PSEUDONYM.sub("<patient>", words)[:MOST_WORDS]
