"""The table of exit codes says what the code does, all of it and nothing else."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from shared_model import errors

TABLE = Path(errors.__file__).with_name("EXIT_CODES.md")


def test_the_table_names_every_error_with_its_code_cause_and_cure() -> None:
    rows = re.findall(r"^\| (\d+) \| (?:`(\w+)`)? *\| (.*?) \| (.*?) *\|$", TABLE.read_text(encoding="utf-8"), re.M)
    listed = {name: int(code) for code, name, _, _ in rows if name}
    classes = (cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, errors.MammoFedError))
    assert listed == {cls.__name__: cls.exit_code for cls in classes}
    assert len(set(listed.values())) == len(listed), "a code stands for one error"
    assert all(cause and cure for _, name, cause, cure in rows if name)
