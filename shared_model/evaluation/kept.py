"""Scores on `test` that an evaluator keeps in its own state, so that two studies can be compared woman by woman.

They never leave the evaluator: no message holds them. Written by the evaluator's trainer when `test` is opened; read by
whoever owns its disk, which in a simulation is the simulator. One safetensors file a study: `label` uint8 [N]; `fused`,
`image`, `clinical` float64 [N], logits; `vendor` uint8 [N], a place in the list `vendors` of the metadata entry `kept`,
which also holds `women`, a hash of their pseudonyms in order: scores are paired only where it is the same. Needs no
torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from shared_model.bounded import read_at_most
from shared_model.errors import StorageError
from shared_model.evaluation.scores import Scores
from shared_model.protocol import Protocol

MAX_BYTES = 64 << 20  # two million women
MAX_VENDORS = 256     # what `vendor` can name; an evaluator with more keeps the first ones and calls the others unknown
UNKNOWN = "unknown"   # a woman without films
DTYPES = {"label": np.uint8, "fused": np.float64, "image": np.float64, "clinical": np.float64, "vendor": np.uint8}


@dataclass(frozen=True, kw_only=True)
class KeptScores:
    """Of the N women of `test`, in the cohort's order. women: hash of their pseudonyms. vendor: index in `vendors`."""

    women: str
    label: NDArray[np.uint8]
    fused: NDArray[np.float64]
    image: NDArray[np.float64]
    clinical: NDArray[np.float64]
    vendor: NDArray[np.uint8]
    vendors: tuple[str, ...]

    def of_vendors(self, names: Sequence[str]) -> NDArray[np.bool_]:
        """Which women were filmed by one of these vendors, bool [N]."""
        return np.isin(self.vendor, [i for i, name in enumerate(self.vendors) if name in names])


def kept_path(state: Path, protocol: Protocol) -> Path:
    """Where an evaluator with this state folder keeps the chosen model's scores of a study."""
    return state / "reference" / f"{protocol.study}-{protocol.sha256[:16]}.test.safetensors"


def keep_scores(path: Path, scores: Scores, *, pseudonyms: Sequence[str], vendors: Sequence[object]) -> None:
    """Write the scores atomically.

    Args:
        pseudonyms, vendors: of the same women in the same order; a vendor that is no text is unknown.

    Raises:
        StorageError: the file cannot be written.
    """
    words = [vendor if isinstance(vendor, str) and vendor else UNKNOWN for vendor in vendors]
    names = [*sorted(set(words) - {UNKNOWN})[: MAX_VENDORS - 1], UNKNOWN]
    places = {name: place for place, name in enumerate(names)}
    tensors = {
        "label": scores.labels, "fused": scores.fused, "image": scores.image, "clinical": scores.clinical,
        "vendor": np.array([places.get(word, places[UNKNOWN]) for word in words], dtype=np.uint8),
    }  # fmt: skip
    women = hashlib.sha256("\n".join(pseudonyms).encode()).hexdigest()
    data = save({name: np.ascontiguousarray(tensors[name], dtype=DTYPES[name]) for name in DTYPES},
                metadata={"kept": json.dumps({"women": women, "vendors": names})})  # fmt: skip
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        raise StorageError("the evaluator cannot keep its scores", found=error.strerror,
                           remedy="free some space, then resume the study") from None  # fmt: skip


def read_kept(path: Path) -> KeptScores:
    """Read and check a file of :func:`keep_scores`.

    Raises:
        StorageError: absent, too large or damaged.
    """
    data = read_at_most(path, MAX_BYTES, error=StorageError)
    try:
        tensors = load(data)
        document = json.loads(json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]["kept"])
        women, vendors = str(document["women"]), tuple(str(name) for name in document["vendors"])
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise StorageError(f"{path} is damaged: {type(error).__name__}", remedy="run the study again") from None
    if problem := _problem(tensors, vendors):
        raise StorageError(f"{path} is damaged", found=problem, remedy="run the study again")
    return KeptScores(women=women, vendors=vendors, **tensors)


def _problem(tensors: dict[str, NDArray[np.generic]], vendors: tuple[str, ...]) -> str:
    """What is wrong with a file's content, or nothing."""
    if {name: array.dtype for name, array in tensors.items()} != DTYPES:
        return "other tensors than " + ", ".join(DTYPES)
    if len({array.shape for array in tensors.values()}) != 1 or tensors["label"].ndim != 1:
        return "tensors of different lengths"
    if not all(np.isfinite(tensors[name].astype(np.float64)).all() for name in ("fused", "image", "clinical")):
        return "scores that are not finite"
    if not np.isin(tensors["label"], (0, 1)).all() or not (tensors["vendor"].astype(int) < len(vendors)).all():
        return "labels or vendors that do not exist"
    return ""
