"""Decides whether a study's model replaces the one that it began from, and writes `replacement.json`.

Called by the launcher at the end of such a study and by `mammofed server judge`. Whoever decides owns the evaluator's
disk: scores of single women are paired here and go nowhere else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from server.reporting.passport_again import is_or_follows
from server.rounds.checkpoint import write_bytes
from shared_model.cohort import Cohort, split_indices
from shared_model.contract import load_contract
from shared_model.errors import ConfigError, PassportError, ProtocolError, RoundError
from shared_model.evaluation.drift import as_values, drift_of
from shared_model.evaluation.kept import KeptScores, kept_path, read_kept
from shared_model.evaluation.replacement import Verdict, at_sites, on_the_same_women
from shared_model.evaluation.subgroups import subgroup_members
from shared_model.passport import SignedPassport, verify
from shared_model.passport.verify import PROTOCOL
from shared_model.protocol import Protocol

REPLACEMENT: Final = "replacement.json"
MAX_SITE_BYTES: Final = 1 << 16


@dataclass(frozen=True)
class EvaluatorDisk:
    """What the decision needs of an evaluator's settings: `trainer.json` of a deployed one, `site.json` of a rehearsed
    one."""

    cohort: Path
    state: Path
    salt: str
    fractions: Mapping[str, float]

    @classmethod
    def read(cls, path: Path) -> EvaluatorDisk:
        """Read the settings. path: of the file, or of the evaluator's home.

        Raises:
            ConfigError: absent, or no such file.
        """
        if path.is_dir():
            path = next((p for p in (path / "trainer" / "trainer.json", path / "site.json") if p.exists()), path)
        try:
            with path.open("rb") as stream:
                values = json.loads(stream.read(MAX_SITE_BYTES))
            fractions = {str(k): float(v) for k, v in values["fractions"].items()}
            return cls(Path(values["cohort"]), Path(values["state"]), str(values["salt"]), fractions)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{path} is no evaluator's home or settings", found=type(error).__name__,
                              expected="trainer/trainer.json or site.json in it, with cohort, state, salt, fractions",
                              ) from None  # fmt: skip


@dataclass(frozen=True)
class Decision:
    """What was decided. drift: by pair of cohorts, as JSON values."""

    verdict: Verdict
    old: SignedPassport
    new: SignedPassport
    drift: Mapping[str, Sequence[Mapping[str, object]]]

    def document(self) -> dict[str, Any]:
        """The content of `replacement.json`."""
        return {
            "replaces": self.verdict.replaces,
            "old": {"study": self.old.passport.study, "passport_sha256": self.old.sha256},
            "new": {"study": self.new.passport.study, "passport_sha256": self.new.sha256},
            "comparisons": [asdict(row) for row in self.verdict.comparisons],
            "drift": {name: list(rows) for name, rows in self.drift.items()},
        }  # fmt: skip


def decide(
    old: Path, new: Path, *, evaluator: Path, earlier_evaluator: Path | None = None,
    cohorts: Mapping[str, tuple[Path, Path]] | None = None,
) -> Decision:  # fmt: skip
    """Judge a new model against the one that its study began from, and write `replacement.json` beside it.

    Args:
        old, new: folders (or files) with passports. evaluator: its home or settings; earlier_evaluator: that of the old
            study, where it is another. cohorts: (then, now) by name, for the drift report.

    Raises:
        PassportError, SignatureError: a model is not what its passport says, or the new one did not begin from the old.
        RoundError: the two were not judged on the same women. StorageError: scores are damaged.
    """
    before, after = verify(old), verify(new)
    protocol, earlier = Protocol.read(after.folder / PROTOCOL), Protocol.read(before.folder / PROTOCOL)
    terms = protocol.replacement
    if terms is None:
        raise ProtocolError(f"{protocol.study} does not say when its model may replace another",
                            expected="a study from a released model: `mammofed server retrain`")  # fmt: skip
    if not is_or_follows(before, terms.passport_sha256):
        raise PassportError(f"{protocol.study} began from another model", found=before.signed.sha256[:16],
                            expected=terms.passport_sha256[:16],
                            remedy="name the passport that its protocol names")  # fmt: skip
    now = EvaluatorDisk.read(evaluator)
    then = now if earlier_evaluator is None else EvaluatorDisk.read(earlier_evaluator)
    new_scores, old_scores = _kept(now, protocol), _kept(then, earlier)
    if new_scores.women != old_scores.women or not np.array_equal(new_scores.label, old_scores.label):
        raise RoundError("the two models were not judged on the same women", found=new_scores.women[:16],
                         expected=old_scores.women[:16],
                         remedy="give both studies the same held-out cohort and split")  # fmt: skip
    comparisons = on_the_same_women(
        new_scores.label, new_scores.fused, old_scores.fused, _groups(now, new_scores), terms=terms,
        confidence=protocol.evaluation.confidence,
    )  # fmt: skip
    names = [site.name for site in protocol.federation.sites]
    rows = [{k: v.model_dump() for k, v in one.signed.passport.metrics.sites.items()} for one in (after, before)]
    comparisons += at_sites(rows[0], rows[1], names, terms=terms)
    contract = load_contract()
    drift = {name: as_values(drift_of(Cohort.open(a), Cohort.open(b), contract))
             for name, (a, b) in sorted((cohorts or {}).items())}  # fmt: skip
    decision = Decision(Verdict(comparisons), before.signed, after.signed, drift)
    write_bytes(after.folder / REPLACEMENT, (json.dumps(decision.document(), indent=1) + "\n").encode())
    return decision


def words_of(decision: Decision) -> list[str]:
    """The decision for a terminal: the answer first, then every place where it was not plainly yes."""
    rows, new, old = decision.verdict.comparisons, decision.new.passport.study, decision.old.passport.study
    lines = [f"The model of {new} {'replaces' if decision.verdict.replaces else 'does not replace'} that of {old}."]
    for row in rows:
        if row.where != "overall" and row.verdict != "not shown":
            continue
        gap = "no figures" if row.difference is None else f"{row.difference:+.3f} ({row.low:+.3f} to {row.high:+.3f})"
        who = "" if row.n is None else f", {row.n:.0f} women, {row.positives or 0:.0f} with cancer"
        lines.append(f"{row.where} {row.name}: AUC {gap}, margin {row.margin:g}{who}: {row.verdict}")
    unjudged = [f"{row.where} {row.name}" for row in rows if row.verdict == "not judged" and row.where != "overall"]
    if unjudged:
        lines.append(f"Too few women to judge: {', '.join(unjudged)}")
    shifted = {name: [str(r["field"]) for r in fields if r["shifted"]] for name, fields in decision.drift.items()}
    for name, fields in shifted.items():
        lines.append(f"Drift at {name}: {', '.join(fields) if fields else 'no field of the contract has shifted'}")
    return lines


def _kept(disk: EvaluatorDisk, protocol: Protocol) -> KeptScores:
    path = kept_path(disk.state, protocol)
    if not path.is_file():
        raise RoundError(f"the evaluator kept no scores of {protocol.study}", found=path,
                         remedy="name the evaluator that judged it")  # fmt: skip
    return read_kept(path)


def _groups(disk: EvaluatorDisk, scores: KeptScores) -> dict[str, NDArray[np.bool_]]:
    """Members of each subgroup among the women of `test`, in the order of the scores."""
    cohort = Cohort.open(disk.cohort)
    rows = split_indices(cohort, salt=disk.salt, fractions=disk.fractions)["test"]
    pseudonyms = [cohort.pseudonyms[row] for row in rows]
    if hashlib.sha256("\n".join(pseudonyms).encode()).hexdigest() != scores.women:
        raise RoundError("the evaluator's cohort is not the one that was scored", found=cohort.path,
                         remedy="give it the cohort that it had")  # fmt: skip
    attributes = cohort.attributes.iloc[rows]
    return {f"{name} {level}": members for name in attributes.columns
            for level, members in subgroup_members(str(name), attributes[name].tolist()).items()}  # fmt: skip
