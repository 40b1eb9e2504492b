"""Deals the women of a public data set out to sites and to the coordinator; called by public. It never sees a film."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shared_model.cohort import Cohort, assign_fold, assign_split, split_indices
from shared_model.errors import CohortError
from simulations.hospitals.collection import Woman
from simulations.hospitals.defaults import HELD_OUT

LEAST_HELD_OUT = 4  # of each label: two each in `selection` and in `test`, the fewest that a standard error exists for


def partition(
    women: Sequence[Woman], *, sites: int, held_out_fraction: float, salt: str
) -> dict[str, list[Woman]]:
    """Women by party: sites in name order, the held-out cohort last.

    A woman's place depends on her id, the salt and what the data set says of her (its published split, its sites) only,
    so it does not move as women arrive. Sites named by hash are alike but for chance.

    Args:
        sites: how many, for women whose data set names none.
        held_out_fraction: of women for whom the data set says nothing, in (0, 1).

    Raises:
        CohortError: the fraction is impossible, or a woman is there twice.
    """
    if not 0.0 < held_out_fraction < 1.0:
        raise CohortError("cohort.held_out_fraction is impossible", found=held_out_fraction, expected="0 < f < 1")
    if len({woman.patient_id for woman in women}) != len(women):
        raise CohortError("a patient is there twice", remedy="give each patient one id")
    parties: dict[str, list[Woman]] = {woman.site: [] for woman in women if woman.site} or {
        _site_name(number, sites): [] for number in range(sites)
    }
    parties = {name: parties[name] for name in sorted(parties)} | {HELD_OUT: []}
    fractions = {"held_out": held_out_fraction, "sites": 1.0 - held_out_fraction}
    for woman in women:
        held_out = woman.held_out
        if held_out is None:
            held_out = assign_split(woman.patient_id, salt=salt, fractions=fractions) == "held_out"
        site = woman.site or _site_name(assign_fold(woman.patient_id, k=sites, salt=salt) if sites > 1 else 0, sites)
        parties[HELD_OUT if held_out else site].append(woman)
    return parties


def _site_name(number: int, sites: int) -> str:
    return f"site_{number + 1:0{max(2, len(str(sites)))}d}"


def check_sizes(parties: Mapping[str, Sequence[Woman]], *, kind: str, least: int) -> None:
    """Refuse what is no study.

    Args:
        least: women of a site; the step to which its public size is rounded, because a smaller site would be announced
            larger than it is.

    Raises:
        CohortError: a site or the held-out cohort is too small, or lacks a label.
    """
    held_out = parties[HELD_OUT]
    cancers = sum(woman.label for woman in held_out)
    small = [name for name, women in parties.items() if name != HELD_OUT and len(women) < least]
    if small or min(cancers, len(held_out) - cancers) < LEAST_HELD_OUT:
        raise CohortError(
            f"cohort={kind}: too few women for a study",
            found=", ".join(f"{name}: {len(women)} women, {sum(w.label for w in women)} with cancer"
                            for name, women in parties.items()),
            expected=f"at least {least} women at each site, {LEAST_HELD_OUT} with and {LEAST_HELD_OUT} without cancer "
                     "among the held-out",
            remedy="ask for fewer sites, another cohort.held_out_fraction, or add films to the source folder",
        )  # fmt: skip


def check_held_out(cohort: Cohort, *, salt: str, fractions: Mapping[str, float]) -> None:
    """Refuse, before any round, a held-out cohort of which a part lacks a label: nothing could be chosen or judged.

    Raises:
        CohortError: with the counts of each part.
    """
    places = split_indices(cohort, salt=salt, fractions=fractions)
    labels = {name: cohort.labels[part] for name, part in places.items()}
    if any(len(set(part.tolist())) < 2 for part in labels.values()):
        raise CohortError(
            "the held-out women do not have both labels in each part",
            found=", ".join(f"{name}: {len(part)} women, {int(part.sum())} with cancer"
                            for name, part in labels.items()),
            expected="women with and without cancer in `selection` and in `test`",
            remedy="hold more women out (held_out, or cohort.held_out_fraction), or take another seed",
        )  # fmt: skip
