"""Where a study's women come from and how hospitals differ; called by simulations/cohorts."""

from simulations.hospitals.defaults import default_hospitals
from simulations.hospitals.partition import check_held_out
from simulations.hospitals.shifts import shifted, synthetic_hospitals
from simulations.hospitals.sources import STAGES, check_cohort, sources

__all__ = [
    "STAGES", "check_cohort", "check_held_out", "default_hospitals", "shifted", "sources", "synthetic_hospitals",
]  # fmt: skip
