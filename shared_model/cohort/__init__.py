"""The prepared cohort: decoded once, memory-mapped for ever after, one row and one bag of views a patient.

Importing this package does not import torch; `Cohort.batch` does, when it is first called.
"""

from shared_model.cohort.cohort import Cohort
from shared_model.cohort.layout import SCHEMA_VERSION
from shared_model.cohort.splits import assign_fold, assign_split, folds, split_indices, stratified_folds
from shared_model.cohort.views import VIEWS
from shared_model.cohort.writer import CohortWriter, sweep

__all__ = [
    "SCHEMA_VERSION",
    "VIEWS",
    "Cohort",
    "CohortWriter",
    "assign_fold",
    "assign_split",
    "folds",
    "split_indices",
    "stratified_folds",
    "sweep",
]
