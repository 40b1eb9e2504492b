"""TRIPOD+AI and CLAIM 2024 filled by machine: each item with the artefact that answers it, or "not done" and why.

Items are those of Collins et al. 2024 (BMJ 385:e078378) and of Tejani et al. 2024 (Radiology AI 6:e240300), in our own
few words. Nothing is ticked because it should be so: an item is done when the artefact it names exists in this run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

NOT_DONE = "not done"
BY_PEOPLE = "needs the study's people: a program cannot know it"


@dataclass(frozen=True, kw_only=True)
class Item:
    """One line. where: section or file when `done`, the reason when not."""

    number: str
    what: str
    done: bool
    where: str


# number, what, the fact that must hold (empty: nothing can), where it stands or why it does not
TRIPOD_AI = (
    ("1", "Title: names the model, the population, the outcome", "", "the report's title names the study alone"),
    ("2", "Abstract by TRIPOD+AI for Abstracts", "", "no abstract is written by machine"),
    ("3a-c", "Background, intended use, health inequalities", "", BY_PEOPLE),
    ("4", "Objectives: development or evaluation", "answer", "The answer, at the head"),
    ("5a", "Data sources, rationale, representativeness", "data", "The caution at the head"),
    ("5b", "Dates of data collection", "", "the cohort holds no dates, by de-identification"),
    ("6a-b", "Setting, eligibility", "data", "The caution at the head; each site's own criteria are with the site"),
    ("6c", "Treatments received", "", "not in the data contract"),
    ("7", "Data preparation, the same across groups", "protocol", "contract and imaging pipeline, by hash"),
    ("8a-c", "Outcome, its assessment, blinding", "", "the contract defines the label; assessment is the sites'"),
    ("9a-c", "Predictors: choice, definition, measurement", "protocol", "the data contract, by hash"),
    ("10", "Sample size and its justification", "", "sizes are stated; no calculation was made beforehand"),
    ("11", "Missing data", "protocol", "masks and missing flags by the contract; subgroups by inputs"),
    ("12a", "How data were used: partitions", "protocol", "patient-wise hash splits; test opened once"),
    ("12b-c", "Predictor handling; model type, building, tuning", "protocol", "protocol.json"),
    ("12d", "Heterogeneity between clusters (sites)", "sites", "Results of each hospital; between-site variance"),
    ("12e", "Measures of performance and comparison", "metrics", "Results on held-out women"),
    ("12f", "Model updating (recalibration)", "recalibration", "Each hospital: before and after recalibration"),
    ("12g", "How predictions were computed", "model", "model.safetensors, named by hash"),
    ("13", "Class imbalance: methods and recalibration", "protocol", "loss and temperature in protocol.json"),
    ("14", "Fairness: approaches and rationale", "subgroups", "Subgroups, described; no correction was made"),
    ("15", "Model output and thresholds", "metrics", "thresholds from selection, printed with realised specificity"),
    ("16", "Differences of training and evaluation data", "data", "The caution at the head; results of each hospital"),
    ("17", "Ethical approval", "", BY_PEOPLE),
    ("18a-b", "Funding, conflicts of interest", "", BY_PEOPLE),
    ("18c", "Protocol available", "protocol", "protocol.json, frozen and hashed before training"),
    ("18d", "Registration", "", "not registered anywhere that this program knows of"),
    ("18e-f", "Data and code sharing", "versions", "the release is open; patients' data stay at the sites"),
    ("19", "Patient and public involvement", "", BY_PEOPLE),
    ("20a-b", "Participants: flow, characteristics", "subgroups", "Subgroups with n and events; no flow diagram"),
    ("20c", "Comparison of training and evaluation predictors", "", "only where a study replaces another (drift)"),
    ("21", "Numbers of participants and events in each analysis", "metrics", "n and events at every figure"),
    ("22", "Model specification in full", "model", "protocol.json and model.safetensors"),
    ("23a", "Performance with intervals, in key subgroups", "subgroups", "Results; Subgroups"),
    ("23b", "Heterogeneity in performance between clusters", "sites", "Results of each hospital"),
    ("24", "Results of model updating", "recalibration", "Each hospital: recalibration"),
    ("25", "Interpretation", "answer", "The answer, at the head"),
    ("26", "Limitations", "data", "How little this can show, and the caution at the head"),
    ("27a-c", "Usability: poor input, user interaction, next steps", "", "not part of a training study"),
)
CLAIM = (
    ("1", "Identifies the AI technology in title or abstract", "", "no title or abstract is written by machine"),
    ("2", "Structured summary", "answer", "The answer, at the head"),
    ("3-4", "Background, aims, hypotheses", "primary", "primary endpoint declared in the protocol"),
    ("5", "Prospective or retrospective", "", BY_PEOPLE),
    ("6", "Study goal", "answer", "The answer, at the head"),
    ("7", "Data sources", "data", "The caution at the head"),
    ("8", "Inclusion and exclusion criteria", "", "each site's quarantine rules; not summed up here"),
    ("9", "Data preprocessing", "protocol", "imaging pipeline, by hash"),
    ("10", "Selection of data subsets", "protocol", "patient-wise hash splits"),
    ("11", "De-identification", "protocol", "allow-list at the importer; SITE_DATA.md"),
    ("12", "Missing data", "protocol", "masks and missing flags by the contract"),
    ("13", "Image acquisition protocol", "", "vendors are subgroups; acquisition settings are not collected"),
    ("14-16", "Reference standard: definition, source", "", "the contract defines it; its source is the sites'"),
    ("17-18", "Annotation of the test set; reader variability", "",
     "assessment is the sites'; no reader saw a score"),
    ("19-20", "Partitions: assignment, level of disjointness", "protocol", "by patient, from a salted hash"),
    ("21", "Intended sample size", "", "no calculation was made beforehand"),
    ("22", "Model in detail", "protocol", "protocol.json"),
    ("23", "Software", "versions", "versions, in the report and in summary.json"),
    ("24", "Initialisation of parameters", "protocol", "initial weights by hash and recipe"),
    ("25", "Training in detail", "protocol", "protocol.json"),
    ("26", "Selection of the final model", "model", "stated rule on selection, before test was opened"),
    ("27", "Ensembling", "protocol", "none; federated averaging by protocol.json"),
    ("28", "Metrics of performance", "metrics", "Results on held-out women"),
    ("29", "Significance and uncertainty", "metrics", "DeLong, bootstrap, Wilson; Holm besides the primary endpoint"),
    ("30", "Robustness or sensitivity analysis", "site_matrix_or_other_arm", "site by site matrix; other arms"),
    ("31", "Explainability", "maps", "Heat maps, checked against known lesions and random weights"),
    ("32", "Evaluation on internal data", "metrics", "Results on held-out women"),
    ("33", "Testing on external data", "", "no hospital outside the study was used; see leave-one-site-out"),
    ("34", "Clinical trial registration", "", "not registered"),
    ("35", "Numbers of patients included and excluded", "", "included are stated; what sites left out stays with them"),
    ("36", "Demographic and clinical characteristics by partition", "subgroups", "Subgroups of the test women alone"),
    ("37-38", "Performance with uncertainty", "metrics", "Results on held-out women"),
    ("39", "Failure analysis", "", "cases stay at the evaluator; no analysis was made"),
    ("40", "Limitations", "data", "How little this can show, and the caution at the head"),
    ("41", "Implications for practice", "", "research software; none are claimed"),
    ("42", "Full protocol", "protocol", "protocol.json"),
    ("43", "Availability of software, model, data", "versions", "the release is open; weights by hash"),
    ("44", "Funding", "", BY_PEOPLE),
)


def checklist(items: Sequence[tuple[str, str, str, str]], facts: Mapping[str, bool]) -> list[Item]:
    """The lines of one checklist.

    Args:
        items: TRIPOD_AI or CLAIM.
        facts: which artefacts exist, by the names that items use.
    """
    rows = []
    for number, what, needs, where in items:
        done = bool(needs) and facts[needs]
        reason = where if done or not needs else f"this run has no {needs.replace('_', ' ')}"
        rows.append(Item(number=number, what=what, done=done, where=reason))
    return rows


def counted(rows: Sequence[Item]) -> str:
    """`24 of 37 done`."""
    return f"{sum(row.done for row in rows)} of {len(rows)} done"
