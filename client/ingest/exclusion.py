"""A woman's objection: out of the cohort, out of what the importer keeps, and which released models cover her."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from client.ingest.imports import RECEIVED, Stage, import_site, opened
from client.ingest.site_file import SiteFile
from client.ingest.sources import Received
from client.privacy.ledger import Ledger
from shared_model.cohort import Cohort
from shared_model.errors import CohortError, ConfigError, MammoFedError


def exclude_patient(
    site: SiteFile, patient: str, *, is_pseudonym: bool, ledgers: Sequence[Path], undo: bool, stage: Stage | None = None
) -> Iterator[str]:
    """Exclude her, import again without her, and say in lines what that means.

    Args:
        patient: the hospital's id, or a pseudonym. ledgers: of the site's trainer.

    Raises:
        ConfigError: nobody of that pseudonym is known. As :func:`client.ingest.imports.import_site`.
    """
    if not patient.strip():
        raise ConfigError("PATIENT is empty", expected="the hospital's id of the woman who objects")
    with opened(site) as (vault, deidentifier):
        pseudonym = patient if is_pseudonym else deidentifier.pseudonym(patient.strip())
        known = vault.patient_of(pseudonym) is not None
        if not known and (is_pseudonym or undo):
            raise ConfigError("nobody of that pseudonym is known here", found=pseudonym,
                              expected="a pseudonym of the quarantine list or the cohort")  # fmt: skip
        if undo:
            yield "Objection taken back." if vault.include(pseudonym) else "There was no objection of hers."
            yield "Next        `mammofed site import` brings her back"
            return
        cohorts = vault.cohorts_of(pseudonym)
        held = _is_in_cohort(site, pseudonym)  # the memory may be younger than the cohort, or the import was killed
        vault.exclude(pseudonym, since=datetime.now(UTC).date().isoformat())
    # After the objection is on the disk: a crash from here on leaves her excluded, and the next import finishes it.
    removed = _remove_received(site, pseudonym)
    yield f"Excluded    {pseudonym}" + ("" if known else " (she was not known here; she will not come in)")
    if removed:
        yield f"Removed     {removed} films of hers from the importer's store"
    if not cohorts and not held:
        yield "Models      she was in no cohort of this site; no model covers her"
        return
    try:
        done = import_site(site, stage=stage)
    except MammoFedError:
        if _is_in_cohort(site, pseudonym):
            yield (f"Cohort      STILL HOLDS HER: it could not be made anew. Let nobody train on it until "
                   f"`mammofed site import` has succeeded; where nobody is left, remove {site.cohort}")
        raise
    yield f"Cohort      {done.report.patients_prepared} women, without her"
    if cohorts:
        yield from _models(cohorts, ledgers)
    else:
        yield "Models      not known: this importer's memory does not say since when she was in the cohort"


def _is_in_cohort(site: SiteFile, pseudonym: str) -> bool:
    if not site.cohort.exists():
        return False
    try:
        return pseudonym in Cohort.open(site.cohort).pseudonyms
    except CohortError:
        return True  # damaged: nobody can say, and an objection does not wait


def _remove_received(site: SiteFile, pseudonym: str) -> int:
    removed = 0
    for number, source in enumerate(site.films, start=1):
        folder = site.work / RECEIVED / f"{number}-{source.kind}"
        if folder.is_dir():
            with Received(folder, max_bytes=site.imaging.max_bytes) as store:
                removed += store.remove_patient(pseudonym)
    return removed


def _models(cohorts: Sequence[tuple[str, str]], ledgers: Sequence[Path]) -> Iterator[str]:
    """Studies that were charged to the site's patients since she was first in a cohort.

    A ledger accounts for all training patients alike, so each study since then is listed: her own share cannot be told
    apart, and is not kept, because the split is a salted hash and not a list.
    """
    since = cohorts[0][1]
    yield f"In cohorts  since {since}, in {len(cohorts)} of them"
    if not ledgers:
        yield "Models      give --ledger to list the studies whose epsilon covers her"
        return
    for path in ledgers:
        studies: dict[str, list[dict[str, object]]] = {}
        for record in Ledger(path).records():
            if str(record["reserved_at"]) >= since:
                studies.setdefault(str(record["study"]), []).append(record)
        for study, records in studies.items():
            rounds = sorted({int(str(record["round"])) for record in records})
            yield (f"Model       study {study}: {len(records)} charges in rounds {rounds[0]} to {rounds[-1]}; its "
                   "weights cannot be called back, and the epsilon of the ledger bounds what they say of her")
        if not studies:
            yield f"Model       none: nothing was charged to {path.name} since"
