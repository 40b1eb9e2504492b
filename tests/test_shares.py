"""The table of what the tests of each part may take: its files exist, and it says what was used."""

from __future__ import annotations

import pytest

from tests import shares


def test_every_place_has_files_and_no_file_is_counted_twice() -> None:
    files = [part.files for part in shares.PARTS.values()]  # raises where a pattern fits nothing
    assert sum(map(len, files)) == len(set().union(*files))
    with pytest.raises(FileNotFoundError, match=r"server/gone\.py"):
        _ = shares.Part(1, ("server/gone.py", "test_shares.py")).files


def test_seconds_of_all_phases_are_added_by_part_and_too_many_are_said() -> None:
    monitor, evidence = (sorted(shares.PARTS[part].files)[0] for part in ("monitor", "evidence"))
    laps = [(f"{monitor}::test_a", 1.0), (f"{monitor}::test_a", 361.0), (f"{evidence}::test_b", 2.0), ("x.py::t", 5.0)]
    words = list(shares.table(laps))
    assert words[0] == "369 CPU-seconds in 3 tests"
    assert words[1] == "monitor: 362 of 360 allowed (3 minutes on two cores), TOO MUCH"
    assert words[2] == "evidence: 2 of 480 allowed (4 minutes on two cores)"
    assert [line.split() for line in words[3:5]] == [["362.0", f"{monitor}::test_a"], ["5.0", "x.py::t"]]
