"""`mammofed server release RUN_DIR FOLDER`: what the coordinator hands to its sites when a study is COMPLETE.

From the journal come thresholds, temperature and the test; nothing of a patient is in it. Called by the command line.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.rounds.checkpoint import read_safetensors, write_bytes
from server.rounds.journal import Journal
from server.rounds.withheld import LEAST_WOMEN
from shared_model.errors import RoundError, StorageError
from shared_model.map_figures import LOCALISATION
from shared_model.messages import weights_sha256
from shared_model.passport import PASSPORT, SBOM, Vouched, vouch
from shared_model.protocol import Protocol
from shared_model.released import INITIAL, PROTOCOL, RELEASE, WEIGHTS, Release, ReleasedBand, Tested


@dataclass(frozen=True)
class Written:
    """What was released, and who vouches for the folder."""

    release: Release
    vouched: Vouched


def write_release(run_dir: Path, folder: Path) -> Written:
    """Write the folder of a released model; its release.json is the one that the study's passport was signed over.

    Raises:
        RoundError: no model was chosen, or its `selection` was not measured.
        StorageError: the run directory is damaged, or the folder cannot be written.
        PassportError, SignatureError: the run directory is not any more what its passport says.
    """
    release = make_release(run_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in (PROTOCOL, WEIGHTS, INITIAL, LOCALISATION, PASSPORT, SBOM):
            if (run_dir / name).exists():
                shutil.copyfile(run_dir / name, folder / name)
        signed = (run_dir / PASSPORT).exists() and (run_dir / RELEASE).exists()
        write_bytes(folder / RELEASE, (run_dir / RELEASE).read_bytes() if signed else release_json(release))
    except OSError as error:
        raise StorageError(f"{folder} cannot be written: {error.strerror}") from None
    return Written(release, vouch(folder))


def release_json(release: Release) -> bytes:
    """The one form of release.json."""
    return (json.dumps(release.model_dump(mode="json"), indent=2) + "\n").encode()


def make_release(run_dir: Path) -> Release:
    """What release.json of a study says, from its journal; raises as :func:`write_release`."""
    protocol = Protocol.read(run_dir / PROTOCOL)
    arrays, _ = read_safetensors(run_dir / WEIGHTS, "model")
    path = run_dir / "journal.sqlite"
    if not path.exists():
        raise StorageError(f"{run_dir} has no journal", expected="the run directory of a study")
    with Journal(path, lambda event: None) as journal:
        chosen = journal.get("chosen")
        if chosen is None:
            raise RoundError(f"{run_dir} has no chosen model", remedy="resume the study to its end")
        number = int(chosen["round"])
        selection, test = journal.document(number, "selection"), journal.document(number, "test")
        spent = journal.rows("SELECT MAX(epsilon) FROM privacy WHERE release = 'training'")
    if selection is None:
        raise RoundError(f"{run_dir}: the chosen model has no thresholds", remedy="resume the study to its end")
    if selection["n"] is None or selection["positives"] is None:  # sites put probabilities right by their share
        raise RoundError(f"{run_dir}: its model was chosen by too few women", found=f"fewer than {LEAST_WOMEN}",
                         expected="the share of women with cancer in `selection`",
                         remedy="run the study with a larger held-out cohort")  # fmt: skip
    return Release(
        study=protocol.study, protocol_sha256=protocol.sha256, model_sha256=weights_sha256(arrays), round=number,
        thresholds=selection["thresholds"], temperature=selection["temperature"],
        specificity=protocol.evaluation.specificity, selection_n=selection["n"],
        selection_positives=selection["positives"], test=_tested(test), calibration=_calibration(test),
        bands=_bands(test),
        epsilon=spent[0][0] if protocol.private and spent else None,
        delta=protocol.privacy.delta if protocol.private else None,
    )  # fmt: skip


def _tested(test: dict[str, Any] | None) -> Tested | None:
    if test is None or test["n"] is None or test["positives"] is None:
        return None
    fused = test["models"]["fused"]
    names = ("auc", "auc_low", "auc_high", "sensitivity", "specificity")
    return Tested(n=test["n"], positives=test["positives"], **{name: fused[name] for name in names})


def _bands(test: dict[str, Any] | None) -> tuple[ReleasedBand, ...]:
    """As the study's report has them; few women as the journal keeps them."""
    models = ((test or {}).get("evidence") or {}).get("models") or {}
    return tuple(
        ReleasedBand(low=row["from"], high=row["to"], **{name: row[name] for name in (
            "n", "rate", "rate_low", "rate_high")}) for row in models.get("fused", {}).get("bands") or []
    )  # fmt: skip


def _calibration(test: dict[str, Any] | None) -> tuple[tuple[float, float, int], ...]:
    bins = test["models"]["fused"]["calibration"] if test is not None else []
    return tuple((float(stated), float(observed), int(n)) for stated, observed, n in bins)
