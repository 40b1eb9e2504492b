"""All cases by name, those that the test suite runs, and the choice of some by pattern."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from shared_model.errors import ConfigError
from simulations.faults.case import Case, Runner
from simulations.faults.damage import damage_cases
from simulations.faults.deployed import deployed_cases
from simulations.faults.disks import disk_cases
from simulations.faults.kills import kill_cases
from simulations.faults.malice import ABSENT, absent, malice_cases
from simulations.faults.network import network_cases

# Of each kind of party: with replies in memory, between checkpoint and journal, in training, with `test` open, and
# where the ledger is charged and the reply not yet stored.
SUITE: Final = (
    "kill/server/at-server/collected", "kill/server/at-server/saving", "kill/site-001/at-site-001/training",
    "kill/evaluator/at-evaluator/testing", "kill-private/site-001/at-site-001/settled",
)  # fmt: skip


def cases(only: Sequence[str] = ()) -> list[Case]:
    """The cases whose name one of the patterns fits: `kill/*`, `*/site-001/*`, or the start of a name; all without any.

    Raises:
        ConfigError: a pattern fits none.
    """
    every = [*kill_cases(), *disk_cases(), *damage_cases(), *malice_cases(), *network_cases(), *deployed_cases()]
    for pattern in only:
        if not any(_fits(case.name, pattern) for case in every):
            raise ConfigError("--only: no such case", found=pattern, expected=", ".join(groups(every)),
                              remedy="`mammofed simulate faults --list` names them all")  # fmt: skip
    return [case for case in every if not only or any(_fits(case.name, pattern) for pattern in only)]


def groups(every: Sequence[Case]) -> list[str]:
    """First words of the cases' names, each once, in order."""
    return list(dict.fromkeys(case.name.partition("/")[0] for case in every))


def runner(root: Path, *, keep: bool = False) -> Runner:
    """A runner that knows the references that the cases name."""
    return Runner(root, {ABSENT: absent}, keep=keep)


def _fits(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name, pattern.rstrip("/") + "/*")
