"""The report of a hand-made run: all in it, nothing from outside, the same bytes each time, honest when incomplete."""

from __future__ import annotations

import json
import re
import sqlite3
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from server.reporting import write_report
from server.reporting.answer import difference_interval
from server.reporting.facts import read_facts
from server.reporting.report import participation_counts
from server.rounds.summary import validator
from shared_model.errors import ProtocolError, StorageError
from shared_model.protocol import Protocol
from tests.handmade_run import ROUNDS, SITES, protocol_values, summary_values, write_run_dir


class Page(HTMLParser):
    """Collects what the tests ask about: tags with their attributes, ids, and the words that a reader sees."""

    VOID = ("meta", "link", "br", "hr", "img", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.unbalanced: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))

    def attributes(self, name: str) -> list[str]:
        return [attrs[name] for _, attrs in self.tags if name in attrs]


def report_of(run_dir: Path, **settings: Any) -> str:
    write_run_dir(run_dir, **settings)
    return write_report(run_dir).read_text(encoding="utf-8")


def test_a_site_whose_answers_were_lost_may_have_spent_more(tmp_path: Path) -> None:
    told = summary_values(Protocol.create(protocol_values(private=True)))["participation"]
    lost = sorted(told)[0]
    text = Page(report_of(tmp_path, participation=told | {lost: {"contributed": 3, "failed": 1}})).text
    assert f"What {lost} spent is not fully known here" in text
    assert text.count("at least ") == 1


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return Page(report_of(tmp_path_factory.mktemp("run")))


def test_the_answer_comes_first(page: Page) -> None:
    answer, _, rest = page.text.partition("Results on held-out women")
    assert "After 12 rounds with 4 hospitals, the fused model reaches an AUC of 0.873" in answer
    assert "hospitals added 0.083 (interval 0.044 to 0.122, clear of zero" in answer
    assert "No hospital spent more than epsilon 7.43 of 8 for each patient" in answer
    assert "Synthetic data" in answer and "nothing about the detection of cancer in real women" in answer
    assert rest


def test_every_part_is_there(page: Page) -> None:
    for words in (
        "Public weights only, no hospital data 0.790 (0.760 to 0.815)", "Table alone 0.651",
        "Films alone 0.842",
        "Films + table (fused) 0.873 (0.843 to 0.898) 77 % (67 % to 85 %) 84 %",
        "fused against films alone", "< 0.001",
        "north patient 7.43 8.00 1e-05 add or remove one PRV 1.300 0.1 60 1.21 6.02 8.91", "Epsilon at delta 0.0001",
        "Not covered: a woman who is a patient of two of the hospitals",
        "density d 60 12 0.810 (0.700 to 0.900)", "vendor E suppressed", "density a 12 0 –",
        "warning late 5 west no reply within 600 s", "torch 2.13.0", "round 11 by best_selection_auc",
    ):  # fmt: skip
        assert words in page.text, words
    assert "an ordinary line" not in page.text


def test_evidence_of_a_study(page: Page) -> None:
    for words in (
        "0.94 against 0.88 0.873 (0.843 to 0.898) against 0.842", "n = 400, 80 with cancer", "54 % of false recalls",
        "Sensitivity at 85 % specificity 92 % 77 % (67 % to 85 %)", "carried over to a prevalence of 0.6 %",
        "Partial AUC at false positive rates up to 15 %",
        "fused against films alone *", "the primary endpoint, declared in the protocol", "low 0 % to 2 %",
        "Model card", "Primary endpoint not declared", "Datasheet of each hospital", "north 300 61 12 12 7.43",
        "TRIPOD+AI 2024", "18a-b Funding, conflicts of interest not done", "CLAIM 2024",
        "mammofed site gain asks it at the hospital",
    ):  # fmt: skip
        assert words in page.text, words


def test_nothing_comes_from_outside_and_nothing_runs(page: Page) -> None:
    for name in ("src", "href", "xlink:href", "data", "action", "poster", "srcset"):
        assert [value for value in page.attributes(name) if not value.startswith("#")] == [], name
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "iframe", "object", "embed", "link", "img", "form"}
    style = next(attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert style.startswith("default-src 'none'")


def test_no_url_but_names_of_xml_dialects(tmp_path: Path) -> None:
    text = report_of(tmp_path)
    urls = set(re.findall(r"(?:https?:)?//[\w.]+[^\s\"'<>]*", text))
    assert urls <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert "@import" not in text and "url(http" not in text


def test_text_of_a_study_is_escaped(tmp_path: Path) -> None:
    text = report_of(tmp_path)
    assert "<script" not in text and "&lt;script&gt;alert(1)&lt;/script&gt;" in text


def test_page_is_well_formed_and_accessible(page: Page) -> None:
    assert page.unbalanced == [] and page.open == []
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    for names in page.attributes("aria-labelledby"):
        assert set(names.split()) <= set(ids)
    figures = [attrs for tag, attrs in page.tags if tag == "svg"]
    assert len(figures) == 4 and all(f.get("role") == "img" and f.get("aria-labelledby") for f in figures)
    assert sum(tag == "title" for tag, _ in page.tags) == 1 + 4  # the page's and one of each figure
    assert all(attrs.get("scope") in ("col", "row") for tag, attrs in page.tags if tag == "th")
    assert ("html", {"lang": "en"}) in page.tags


def test_same_run_gives_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    first = report_of(tmp_path)
    code = "import sys, pathlib; from server.reporting import write_report; write_report(pathlib.Path(sys.argv[1]))"
    code += "; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == first


def test_last_attempt_of_a_round_counts(tmp_path: Path) -> None:
    write_run_dir(tmp_path)
    facts = read_facts(tmp_path)
    assert set(facts.participation) == {(site, number) for site in SITES for number in range(1, ROUNDS + 1)}
    assert participation_counts(facts) == {
        "north": {"contributed": 12}, "east": {"contributed": 11, "abstained": 1}, "south": {"contributed": 12},
        "west": {"contributed": 11, "late": 1},
    }  # fmt: skip


def test_incomplete_study_says_so_first(tmp_path: Path) -> None:
    metrics: dict[str, Any] = {"held_out": None, "selection": [], "sites": {}}
    changes = {"metrics": metrics, "privacy": {}, "model": None}
    page = Page(report_of(tmp_path, status="INCOMPLETE", rounds_completed=7, **changes))
    answer, _, rest = page.text.partition("Results on held-out women")
    assert "This study is INCOMPLETE: 7 of 12 rounds closed. There is no held-out result." in answer
    assert "No privacy was spent." in answer and "AUC of" not in answer
    assert "ended before the test split was opened" in rest


def test_study_without_privacy_does_not_look_private(tmp_path: Path) -> None:
    page = Page(report_of(tmp_path, private=False))
    assert "No differential privacy" in page.text.partition("Results on held-out women")[0]
    assert "Epsilon" not in page.text and "Not covered" not in page.text


def test_a_model_that_gained_nothing_is_not_praised(tmp_path: Path) -> None:
    protocol = write_run_dir(tmp_path)
    summary = summary_values(protocol)
    summary["metrics"]["held_out"]["public_weights"]["auc"] = 0.9
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    text = Page(write_report(tmp_path).read_text()).text
    assert "It is not better than the public weights alone, which reach 0.900" in text and "hospitals added" not in text


def test_random_initial_weights_are_not_called_public(tmp_path: Path) -> None:
    write_run_dir(tmp_path)
    values = protocol_values()
    values["initial_weights"]["origin"] = "random"
    (tmp_path / "protocol.json").write_text(Protocol.create(values).to_json())
    text = Page(write_report(tmp_path).read_text()).text
    assert "Random weights only, no hospital data 0.790" in text and "Random weights alone" in text
    assert "Public weights" not in text


def test_unstated_source_of_data_is_said(tmp_path: Path) -> None:
    write_run_dir(tmp_path)
    (tmp_path / "launch.json").unlink()
    text = Page(write_report(tmp_path).read_text()).text
    assert "Where the data came from is not stated" in text and "Synthetic" not in text


@pytest.mark.parametrize("name", ["summary.json", "journal.sqlite", "protocol.json"])
def test_damaged_run_directory_is_refused_in_words(tmp_path: Path, name: str) -> None:
    write_run_dir(tmp_path)
    (tmp_path / name).write_bytes(b"\x00 not what it was")
    with pytest.raises((StorageError, ProtocolError), match=name):
        write_report(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises((StorageError, ProtocolError), match=re.escape(name.partition(".")[0])):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_changed_protocol_is_refused(tmp_path: Path) -> None:
    write_run_dir(tmp_path)
    path = tmp_path / "protocol.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(ProtocolError, match="changed after it was frozen"):
        write_report(tmp_path)


def test_report_can_be_written_while_the_journal_is_open(tmp_path: Path) -> None:
    write_run_dir(tmp_path)
    connection = sqlite3.connect(tmp_path / "journal.sqlite")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("BEGIN IMMEDIATE")
    try:
        assert write_report(tmp_path).exists()
    finally:
        connection.rollback()
        connection.close()


def test_the_run_made_by_hand_follows_the_schema_of_real_ones(tmp_path: Path) -> None:
    protocol = write_run_dir(tmp_path)
    validator().validate(summary_values(protocol))


def test_few_women_are_few_in_every_caption(tmp_path: Path) -> None:
    protocol = write_run_dir(tmp_path)
    summary = summary_values(protocol)
    held_out = summary["metrics"]["held_out"]
    held_out["n"] = held_out["positives"] = None  # as the journal writes small counts
    for row in held_out["evidence"]["models"].values():
        row["n"] = row["positives"] = None
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    text = Page(write_report(tmp_path).read_text()).text
    assert "None" not in text
    for words in ("same few women (few with cancer)", "ROC on the test split, few women (few with cancer)"):
        assert words in text, words


def test_a_comparison_is_printed_once(page: Page) -> None:
    assert page.text.count("fused against films alone") == 1 and page.text.count("fused against the table alone") == 1


def test_no_checklist_item_is_done_by_what_the_run_has_not(page: Page) -> None:
    assert "Site by site (a model trained at one hospital, judged at another): not done" in page.text
    assert "sensitivity analysis not done this run has no site matrix or other arm" in page.text


def test_an_unmeasurable_result_is_no_number(tmp_path: Path) -> None:
    """A held-out split without positives: AUC is null everywhere, and the report still opens."""
    protocol = write_run_dir(tmp_path)
    summary = summary_values(protocol)
    names = ("auc", "auc_low", "auc_high", "sensitivity", "sensitivity_low", "sensitivity_high", "calibration_slope")
    nothing = dict.fromkeys(names) | {"roc": [], "calibration": [], "brier": 0.1}
    held_out = summary["metrics"]["held_out"] | {"positives": 0, "public_weights": nothing}
    held_out["models"] = dict.fromkeys(("fused", "image", "clinical"), nothing)
    held_out["comparisons"] = {"fused_vs_image": dict.fromkeys(("difference", "low", "high", "p"))}
    summary["metrics"]["held_out"] = held_out
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    text = Page(write_report(tmp_path).read_text()).text
    assert "All 12 rounds closed, and no held-out result was recorded." in text
    assert "Films + table (fused) – – –" in text and "None" not in text and "nan" not in text


@pytest.mark.parametrize(("auc", "spread", "clear"), [(0.9, 0.02, True), (0.81, 0.05, False)])
def test_interval_of_a_difference(auc: float, spread: float, clear: bool) -> None:
    first = {"auc": auc, "auc_low": auc - spread, "auc_high": auc + spread}
    second = {"auc": 0.8, "auc_low": 0.8 - spread, "auc_high": 0.8 + spread}
    low, high = difference_interval(first, second)
    reach = spread * 2**0.5  # of two equal independent intervals
    assert (low, high) == pytest.approx((auc - 0.8 - reach, auc - 0.8 + reach))
    assert (low > 0) is clear
