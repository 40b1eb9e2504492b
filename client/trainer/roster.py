"""Who of a cohort is in which part: by the salted hash of her pseudonym, or by name; called by the trainer's site.

A part by name is a **roster**, `{part: [pseudonyms]}` in a JSON file beside the site's settings: a fold of a
cross-validation, the women of earlier years. Whom it does not name is in no part. A cohort stays as it is: a part is a
list of rows, and films are read where they lie.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.trainer.config import SiteConfig
from shared_model.bounded import read_at_most
from shared_model.cohort import Cohort, split_indices
from shared_model.errors import ConfigError

MAX_BYTES = 64 << 20  # two million pseudonyms


def rows_by_part(config: SiteConfig, cohort: Cohort) -> dict[str, NDArray[np.int64]]:
    """Positions of each part's patients in the cohort, ascending; a part may be empty, and nobody is in two.

    Names of a roster that the cohort does not hold (she objected since) are passed over.

    Raises:
        ConfigError: the roster cannot be read, or names a woman twice.
    """
    if config.roster is None:
        return split_indices(cohort, salt=config.salt, fractions=config.fractions)
    part_of = {name: part for part, names in read_roster(config.roster, parts=set(config.fractions)).items()
               for name in names}  # fmt: skip
    found: dict[str, list[int]] = {part: [] for part in config.fractions}
    for row, pseudonym in enumerate(cohort.pseudonyms):
        if pseudonym in part_of:
            found[part_of[pseudonym]].append(row)
    return {part: np.array(rows, dtype=np.int64) for part, rows in found.items()}


def read_roster(path: Path, *, parts: set[str]) -> Mapping[str, list[str]]:
    """Read and check a roster.

    Raises:
        ConfigError: absent, too large, no JSON object of lists, other parts than `parts`, or a woman named twice.
    """
    data = read_at_most(path, MAX_BYTES, error=ConfigError, what=f"the roster {path}")
    try:
        values: Any = json.loads(data)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict) or set(values) != parts or not all(
        isinstance(names, list) and all(isinstance(name, str) for name in names) for names in values.values()
    ):
        raise ConfigError(f"{path} is no roster", expected=f"lists of pseudonyms under {', '.join(sorted(parts))}")
    named = [name for names in values.values() for name in names]
    if len(named) != len(set(named)):
        raise ConfigError(f"{path} names a woman twice", found=f"{len(named) - len(set(named))} too many",
                          expected="each woman in one part at most, once")  # fmt: skip
    return values


def split_terms(config: SiteConfig) -> dict[str, Any]:
    """What defines a site's parts, as its state keeps it: another definition would train on women of `test`.

    Raises:
        ConfigError: the roster cannot be read.
    """
    terms: dict[str, Any] = {"salt": config.salt, "fractions": dict(config.fractions)}
    if config.roster is None:
        return terms
    try:
        return {**terms, "roster_sha256": hashlib.sha256(config.roster.read_bytes()).hexdigest()}
    except OSError as error:
        raise ConfigError(f"cannot read the roster {config.roster}: {error.strerror}") from None


def write_roster(path: Path, parts: Mapping[str, list[str]]) -> None:
    """Write a roster atomically."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({part: list(names) for part, names in parts.items()}) + "\n")
    temporary.replace(path)
