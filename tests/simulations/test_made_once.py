"""A cached folder is whole or absent, whoever else makes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulations.made_once import made_once

MARK = "recipe.json"


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_the_folder_appears_at_the_end_alone(tmp_path: Path) -> None:
    home = tmp_path / "cache" / "abc"
    with made_once(home, mark=MARK) as folder:
        (folder / MARK).write_text("mine")
        assert not home.exists()
    assert names(home.parent) == ["abc", f"abc/{MARK}"]


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), made_once(tmp_path / "abc", mark=MARK) as folder:
        (folder / "film").write_text("half")
        raise KeyboardInterrupt
    assert names(tmp_path) == []


def test_who_was_faster_wins(tmp_path: Path) -> None:
    home = tmp_path / "abc"
    with made_once(home, mark=MARK) as folder:
        (folder / MARK).write_text("mine")
        home.mkdir()
        (home / MARK).write_text("theirs")
    assert names(tmp_path) == ["abc", f"abc/{MARK}"] and (home / MARK).read_text() == "theirs"


def test_a_folder_that_is_not_whole_is_an_error(tmp_path: Path) -> None:
    home = tmp_path / "abc"
    home.mkdir()
    (home / "stray").touch()
    with pytest.raises(OSError, match="not empty"), made_once(home, mark=MARK) as folder:
        (folder / MARK).touch()
    assert names(tmp_path) == ["abc", "abc/stray"]
