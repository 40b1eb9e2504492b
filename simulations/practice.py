"""`mammofed simulate cohorts`: synthetic, prepared cohorts under names of one's own, to rehearse a deployment with.

A site's cohort belongs to the site's name, so the simulator's own (`site_01`, ...) cannot stand in for `north`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from shared_model.cohort import Cohort
from shared_model.contract import load_contract
from shared_model.errors import ConfigError, StorageError
from simulations.cohorts import hospitals, prepare_cohorts
from simulations.composition import compose_study
from simulations.hospitals import check_cohort
from simulations.live import LiveView
from simulations.parties import EVALUATOR
from simulations.plan import pipeline_of
from simulations.proposal import NAME

STUDY: Final = "study=smoke"  # small films: a study over them takes seconds


def make_cohorts(folder: Path, sites: Sequence[str], overrides: Sequence[str]) -> dict[str, int]:
    """A cohort for each site, and one of held-out women for the evaluator, as folders of `folder`.

    Args:
        sites: names, as in their invitations. overrides: Hydra's; `study=smoke` where none names a study.

    Returns:
        women by site, those to be kept for testing included; the evaluator last.

    Raises:
        ConfigError: a name, or a setting. StorageError: a cohort of that name is there already.
    """
    for name in sites:
        if not NAME.fullmatch(name) or name == EVALUATOR or list(sites).count(name) > 1:
            raise ConfigError("--site: cannot be a site's name here", found=name[:80],
                              expected="lower-case letters, digits, - and _, each name once")  # fmt: skip
    if not sites:
        raise ConfigError("--site: none is given", expected="--site NAME for each hospital")
    named = any(override.startswith("study=") for override in overrides)
    config = {**compose_study([*([] if named else [STUDY]), *overrides]), "sites": len(sites)}
    check_cohort(config)
    names = [*sites, EVALUATOR]
    for name in names:
        if (folder / name).exists():
            raise StorageError(f"{folder / name} is there already", remedy="give another folder, or take it away")
    folder.mkdir(parents=True, exist_ok=True)
    pipeline = pipeline_of(config)
    with LiveView(folder) as view:
        _, found = hospitals(config, pipeline, view)
        places = {name: (source, folder / name) for name, source in zip(names, found.values(), strict=True)}
        prepare_cohorts(config, places, load_contract(), pipeline, view)
    return {name: len(Cohort.open(folder / name)) for name in names}
