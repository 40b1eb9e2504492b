"""Patient-level evaluation: metrics with intervals, reports, alarms. Importing it needs no torch."""

from shared_model.evaluation.collapse import CollapseAlarm, collapse_alarm
from shared_model.evaluation.histogram import metrics_from_histogram, score_histogram
from shared_model.evaluation.report import selection_report, test_report
from shared_model.evaluation.scores import BatchSource, Scores, evaluate_cohort

__all__ = [
    "BatchSource", "CollapseAlarm", "Scores", "collapse_alarm", "evaluate_cohort", "metrics_from_histogram",
    "score_histogram", "selection_report", "test_report",
]  # fmt: skip
