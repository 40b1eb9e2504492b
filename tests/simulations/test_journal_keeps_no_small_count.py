"""Real studies of hospitals with few test women, whose own policies let every count out: none is in what is written."""

from __future__ import annotations

import json
import re
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server.monitor.writers.feed import Feed
from server.release import make_release
from server.reporting.passport import make_passport
from server.reporting.report import write_report
from server.rounds.loop import run_study
from shared_model.cohort import Cohort, split_indices
from shared_model.errors import RoundError
from simulations.engine.library import TrainerLibrary
from simulations.engine.local import LocalGrid

FEW = 5
PHASES = [{"name": "all", "rounds": 2, "objective": "fusion", "learning_rate": 0.05, "encoder_rate": 0.5}]
# Every name under which a number below five may stand, because it counts no women. A new name fails until it is here.
COUNTS_NO_WOMEN = re.compile(
    r"(summary_version|rounds_planned|id|key|round|rounds_completed|attempt|session|asked|time|started|opened|seconds|journal_version|sites|"
    r"contributed|late|failed|abstained|refused|not_sampled|"  # rounds by outcome
    r""
    r"(wait|load|train|mask|send|round_trip)(_s)?|"
    r"bytes_(up|down)|steps|delta|epsilon|metrics_epsilon|budget|noise_multiplier|sample_rate|sampling_rate|"
    r"loss|norm|cosine|shift|"  # of updates
    r"confidence|(evidence_)?(prevalence|sensitivity|replicates)|max_fpr|wanted|from|to|"  # terms
    r"temperature|thresholds?(_\w+)?|(gate_)?image_(mean|sd)|"
    # shares, errors of shares and statistics of the model on the evaluator's women; of a hospital's without curves
    r"(auc|average_precision|partial_auc|accuracy|sensitivity|specificity|brier|e?ce|adaptive_ece|rate|stated|p|p_adjusted|"
    r"ppv|npv|difference|low|high|fewer_recalls(_p)?|calibration_(slope|intercept)|recalls|found|missed|set_aside|value)"
    r"(_(low|high))?(_(fused|image|clinical))?|"
    r"fused|image|clinical|rule_out|roc|decision|false_positive_rates)"
)
NUMBER_OF_WOMEN = re.compile(r"(?<![\w.,])[0-4] (?:\w+ )?(women|woman|patients?|positives?|negatives?|cancers?)", re.I)


def run(study: Any) -> Path:
    folder = Path(study.root) / "run"
    with TrainerLibrary(list(study.files.values())) as library:
        grid = LocalGrid(library, app=library)
        try:
            outcome = run_study(grid=grid, protocol=study.protocol, run_dir=folder, initial=study.arrays,
                                observer=lambda _: None, stop=threading.Event())  # fmt: skip
        finally:
            grid.close()
    assert outcome.status == "COMPLETE", outcome.reason
    feed = Feed(folder, ["jsonl"])
    feed.step()
    feed.close()
    return folder


def leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """(name, value) of every scalar; entries of a list have the list's name."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(key, inner)
    elif name == "calibration":
        for stated, observed, women in value:
            yield from (("stated", stated), ("rate", observed), ("women", women))
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(name, inner)
    else:
        yield name, value


def cells(journal: Path) -> Iterator[tuple[str, Any]]:
    """Everything in every table, JSON taken apart; a row of `metrics` by the name in it."""
    with closing(sqlite3.connect(journal)) as db:
        db.row_factory = sqlite3.Row
        for (table,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            for row in db.execute(f"SELECT * FROM {table}"):
                values = dict(row)
                if table == "metrics":
                    yield values["name"], values.pop("value")
                if table == "meta":
                    values = {values["key"]: values["value"]}
                for column, value in values.items():
                    yield from leaves(column, parsed(value))


def parsed(value: Any) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value


def faults(found: Iterator[tuple[str, Any]]) -> list[tuple[str, Any]]:
    wrong = []
    for name, value in found:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if (number and 0 <= value < FEW and not COUNTS_NO_WOMEN.fullmatch(name)) or (
            isinstance(value, str) and NUMBER_OF_WOMEN.search(value)
        ):
            wrong.append((name, value))
    return wrong


def few_of(study: Any, party: str) -> set[int]:
    """True counts below five of a party's own test women."""
    config = study.config(party)
    cohort = Cohort.open(config.cohort)
    women = split_indices(cohort, salt=config.salt, fractions=config.fractions)["test"]
    labels = np.asarray(cohort.labels)[women]
    return {count for count in (len(women), int(labels.sum()), int(len(women) - labels.sum())) if count < FEW}


@pytest.mark.parametrize("private", [False, True], ids=["exact", "private"])
def test_nothing_written_has_a_small_count_of_a_site(
    small_study: Callable[..., Any], initial_sha256: str, private: bool
) -> None:
    study = small_study(patients=20, held_out=20, suppress_below=0, private=private, training__phases=PHASES,
                        evaluation__bootstrap=0, initial_weights__sha256=initial_sha256)  # fmt: skip
    assert all(few_of(study, party) for party in study.files), {p: few_of(study, p) for p in study.files}
    folder = run(study)
    assert not (wrong := faults(cells(folder / "journal.sqlite"))), wrong
    documents = [folder / "summary.json", *(folder / "monitor").glob("*.jsonl")]
    assert len(documents) == 2
    for path in documents:
        found = [json.loads(path.read_text())] if path.suffix == ".json" else map(json.loads, path.open())
        assert faults(leaf for each in found for leaf in leaves("", each)) == []
    page = re.sub("<[^>]*>", " ", write_report(folder).read_text())
    assert "held-out women, few with cancer" in page and not NUMBER_OF_WOMEN.search(page)
    with pytest.raises(RoundError, match="too few women"):  # whose share with cancer sites would put it right by
        make_release(folder)
    assert make_passport(folder, components=1, head=None).metrics.test["fused"].positives is None
    with closing(sqlite3.connect(folder / "journal.sqlite")) as db:
        told = dict(db.execute("SELECT site, document FROM reports WHERE scope = 'site'"))
    assert set(told) == {"site-01", "site-02"}  # they answered, and not because nothing was asked
    for text in told.values():
        assert ("auc" in json.loads(text)) == private  # what noise protects is told, without its counts


@pytest.fixture
def initial_sha256(small_study: Callable[..., Any]) -> str:
    from shared_model.messages import weights_sha256

    return weights_sha256(small_study("initial", sites=1, patients=5, held_out=5).arrays)


def test_the_scan_finds_what_it_looks_for() -> None:
    found = {"positives": 3, "n": 4.0, "new": 0, "text": "2 women", "calibration": [[0.1, 0.2, 3]], "auc_fused": 1.0,
             "inner": [{"n": 30}, {"n": None}]}  # fmt: skip
    assert [name for name, _ in faults(leaves("", found))] == ["positives", "n", "new", "text", "women"]
