"""A cached folder that is complete or not there at all; called by what makes hospitals."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def made_once(home: Path, *, mark: str) -> Iterator[Path]:
    """A new folder beside `home` to write into, renamed to `home` at the end; another process that was faster wins.

    Of a folder whose making fails, nothing is left.

    Args:
        mark: name of the file, written last, by which a whole `home` is known.

    Raises:
        OSError: the disk refuses, or what stands at `home` has no `mark`.
    """
    home.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{home.name}-", dir=home.parent))
    try:
        yield folder
        try:
            folder.rename(home)
        except OSError:
            if not (home / mark).exists():
                raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
