"""Writes `passport.json` of a finished study: all that the run directory knows of its model, under a signature.

Called by the launcher and by the coordinator's daemon when a study has ended, before its report. A passport is written
once: what was handed out must stay what it was. Measured heat maps that come later: `passport_again`.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from server.release import make_release, release_json
from server.reporting.answer import unheard_sites
from server.reporting.data_words import data_words
from server.reporting.facts import Facts, mapping, read_facts
from server.reporting.joint_words import joint_part
from server.reporting.limits import limits_of
from server.reporting.passport_metrics import metrics_part
from server.rounds.checkpoint import read_safetensors, write_bytes
from server.rounds.journal import Journal
from server.rounds.journal_digest import journal_sha256
from shared_model.audit.heads import SignedHead
from shared_model.bundle.installed import code_sha256, installed_sbom
from shared_model.errors import RoundError
from shared_model.map_figures import LOCALISATION
from shared_model.messages import weights_sha256
from shared_model.passport import PASSPORT, SBOM, Passport, SignedPassport
from shared_model.passport.document import (
    DataPart,
    FilePart,
    ModelPart,
    PrivacyPart,
    RecordPart,
    SitePart,
    SoftwarePart,
    Span,
    SpentPart,
)  # fmt: skip
from shared_model.released import RELEASE
from shared_model.signing import SigningKey

MODEL: Final = "model.safetensors"
NEEDED: Final = (MODEL, "protocol.json")
BESIDE: Final = ("initial.safetensors", RELEASE, "summary.json", "privacy-deltas.json", LOCALISATION, SBOM)


@dataclass(frozen=True, kw_only=True)
class Signature:
    """Who signs. head: how far the coordinator's audit log reaches, asked when the passport is made."""

    kind: Literal["coordinator", "run"]
    name: str
    key: SigningKey
    head: Callable[[], SignedHead] | None = None

    @classmethod
    def of_run(cls) -> Signature:
        """A key for one passport alone, on one machine: it is forgotten with this object, so nobody signs with it
        again. It shows that nothing was changed since, not who made it."""
        return cls(kind="run", name="run", key=SigningKey.generate())


def write_passport(run_dir: Path, signature: Signature) -> SignedPassport:
    """Write `passport.json` and the bill of materials of a study with a chosen model; one that is there stays.

    Raises:
        RoundError: no model was chosen.
        StorageError: the run directory is damaged or cannot be written. PassportError: one is there, damaged.
    """
    path = run_dir / PASSPORT
    if path.exists():
        return SignedPassport.read(path)
    text, components = installed_sbom()
    write_bytes(run_dir / SBOM, text.encode())
    if (run_dir / MODEL).exists():
        _write_release(run_dir)
    passport = make_passport(run_dir, components=components, head=signature.head() if signature.head else None)
    signed = SignedPassport.sign(passport, kind=signature.kind, name=signature.name, key=signature.key)
    write_bytes(path, signed.to_json())
    return signed


def _write_release(run_dir: Path) -> None:
    """release.json, so that thresholds, prevalence and bands that sites will score by are under the signature too."""
    try:
        release = make_release(run_dir)
    except RoundError:  # a study that ended before its model was judged has no thresholds, and can be released by none
        return
    write_bytes(run_dir / RELEASE, release_json(release))


def make_passport(run_dir: Path, *, components: int, head: SignedHead | None) -> Passport:
    """The content of a passport, unsigned. components: of the bill of materials that lies in the run directory."""
    facts = read_facts(run_dir)
    arrays, _ = read_safetensors(run_dir / MODEL, "model") if (run_dir / MODEL).exists() else ({}, {})
    chosen = mapping(facts.summary.get("model"))
    if not arrays or not chosen:
        raise RoundError(f"{run_dir} has no chosen model", remedy="resume the study to its end")
    if weights_sha256(arrays) != chosen.get("sha256"):
        raise RoundError(f"{run_dir / MODEL} does not hold the weights that the study chose",
                         found=weights_sha256(arrays)[:16], expected=str(chosen.get("sha256"))[:16],
                         remedy="restore the run directory from its backup")  # fmt: skip
    protocol, kind = facts.protocol, facts.data
    metrics = metrics_part(facts).model_copy(update={"joint": joint_part(facts)})
    versions = {str(k): str(v) for k, v in mapping(facts.summary.get("versions")).items()}
    return Passport(
        study=protocol.study, protocol_sha256=protocol.sha256, status=facts.summary["status"],
        made=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), rounds_planned=protocol.rounds,
        rounds_closed=facts.summary["rounds_completed"],
        model=_model(run_dir, facts, parameters=sum(int(array.size) for array in arrays.values())),
        data=DataPart(
            kind=kind, words=data_words(kind).caution, contract_version=protocol.contract.version,
            contract_sha256=protocol.contract.sha256, n_features=protocol.contract.n_features,
            pipeline_sha256=protocol.pipeline.sha256, height=protocol.pipeline.height, width=protocol.pipeline.width,
            spacing_mm=protocol.pipeline.spacing_mm,
        ),
        sites=tuple(SitePart(name=site.name, patients=site.patients, rounds=_spans(facts, site.name))
                    for site in sorted(protocol.federation.sites, key=lambda site: site.name)),
        privacy=privacy_part(facts), metrics=metrics, limits=limits_of(facts), files=files_part(run_dir),
        software=SoftwarePart(release=protocol.release, code_sha256=code_sha256(), versions=versions,
                              components=components),
        record=RecordPart(journal_sha256=journal_sha256(run_dir / "journal.sqlite"), head=head),
    )  # fmt: skip


def _model(run_dir: Path, facts: Facts, *, parameters: int) -> ModelPart:
    protocol, chosen = facts.protocol, mapping(facts.summary.get("model"))
    with Journal(run_dir / "journal.sqlite", lambda event: None) as journal:
        selection = journal.document(int(chosen["round"]), "selection") or {}
    return ModelPart(
        size=protocol.model.size, fusion=protocol.model.fusion, sha256=chosen["sha256"], parameters=parameters,
        round=chosen["round"], rule=chosen["rule"], thresholds=dict(selection.get("thresholds") or {}),
        specificity=protocol.evaluation.specificity, temperature=selection.get("temperature"),
        origin=protocol.initial_weights.origin, recipe=protocol.initial_weights.recipe,
        initial_sha256=protocol.initial_weights.sha256,
    )  # fmt: skip


def _spans(facts: Facts, site: str) -> tuple[Span, ...]:
    """Outcomes of the site's last attempts by round, equal neighbours together."""
    spans: list[Span] = []
    for number in range(1, int(facts.summary["rounds_completed"]) + 1):
        outcome = facts.participation.get((site, number), "not_sampled")
        if spans and spans[-1].outcome == outcome:
            spans[-1] = spans[-1].model_copy(update={"last": number})
        else:
            spans.append(Span(outcome=outcome, first=number, last=number))  # type: ignore[arg-type]
    return tuple(spans)


def privacy_part(facts: Facts) -> PrivacyPart:
    """What was spent, as sites said it, and at further deltas where somebody has computed them."""
    terms, unheard = facts.protocol.privacy, set(unheard_sites(facts.summary))
    return PrivacyPart(
        mode=terms.mode, unit=terms.unit, adjacency=terms.adjacency, accountant=terms.accountant, delta=terms.delta,
        planned_epsilon=terms.epsilon if facts.protocol.private else 0.0, clip=terms.clip,
        noise_multiplier=terms.noise_multiplier,
        sites=tuple(_spent(facts, site, row, unheard=site in unheard) for site, row in sorted(facts.privacy.items())),
    )  # fmt: skip


def _spent(facts: Facts, site: str, row: Mapping[str, Any], *, unheard: bool) -> SpentPart:
    return SpentPart(
        site=site, epsilon=row.get("epsilon"), budget=row["budget"], steps=row.get("steps"),
        metrics_epsilon=row.get("metrics_epsilon"), at_other_deltas=dict(mapping(facts.other_deltas.get(site))),
        unheard=unheard,
    )  # fmt: skip


def files_part(run_dir: Path) -> tuple[FilePart, ...]:
    """The files that a passport vouches for, as far as they are there."""
    parts = []
    for name in (*NEEDED, *BESIDE):
        if (run_dir / name).exists():
            data = (run_dir / name).read_bytes()
            parts.append(FilePart(name=name, sha256=hashlib.sha256(data).hexdigest(), bytes=len(data),
                                  needed=name in NEEDED))  # fmt: skip
    return tuple(parts)

