"""A cohort's state in counts, as page and on the terminal: nobody is named, and no small count stands there."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from client.ingest import PreparationReport
from client.ingest.page import headline, render, show, words_of, write_page
from client.ingest.quality import (
    RULES,
    age_conflict,
    drift,
    findings,
    shared_patients,
    shared_women,
    view_digests,
)
from client.ingest.summary import Summary, bands_of, levels_of, soften, summarise
from shared_model.cohort import Cohort, CohortWriter
from shared_model.contract import load_contract
from shared_model.errors import CohortError, StorageError

CONTRACT = load_contract()
HOSTILE = "<script>ACME</script>[red]"
VIEWS = ("L_CC", "L_MLO", "R_CC", "R_MLO")


def encode(**cells: object) -> np.ndarray:
    import pandas as pd

    values: np.ndarray = CONTRACT.encode(pd.DataFrame([cells], dtype=object), source="test").values[0]
    return values


def make(folder: Path, n: int = 120, *, seed: int = 0, key: str = "w", density: str = "abcd", telling: str = "",
         images: int | None = None) -> tuple[Cohort, PreparationReport]:  # fmt: skip
    """A cohort of n women: every fifth has cancer, 3 have no film, 4 have one view less, 2 are of a rare maker."""
    rng = np.random.default_rng(seed)
    writer = CohortWriter(folder, site="north", contract_sha256=CONTRACT.sha256, pipeline_sha256="1" * 64, height=4,
                          width=4, n_features=CONTRACT.n_features)  # fmt: skip
    films = positives = 0
    with writer:
        for k in range(n):
            label = int(k % 5 == 0)
            views = VIEWS[: 0 if k < 3 else 3 if k < 7 else 4]
            pixels = {v: np.full((2, 4, 4), ((k if images is None else k + images) * 4 + i) / 2048, dtype=np.float32)
                      for i, v in enumerate(views)}  # fmt: skip
            cells: dict[str, object] = {"age": int(rng.integers(45, 75)), "bmi": float(rng.normal(27, 4))}
            cells |= {"breast_density": density[k % len(density)], "prior_biopsies": k % 3}
            if telling == "value":
                cells["hrt"] = "combined" if label else "none"
            if telling == "number":
                cells["prs_z"] = 2 * label + 0.1 * (k % 7)
            if telling == "known" and label:
                cells["brca"] = "yes" if k % 2 else "no"
            attributes = {"vendor": None if k < 3 else HOSTILE if k < 5 else "ACME", "age_years": cells["age"]}
            writer.add(f"{key}{k:04d}", pixels, encode(**cells), label, attributes)
            films += len(views)
            positives += label
    report = PreparationReport(
        site="north", films=films + 15, films_prepared=films, films_quarantined=15, rows=n + 3, rows_prepared=n,
        rows_quarantined=3, patients=n, patients_prepared=n, patients_quarantined=0, positives=positives, image_only=0,
        table_only=3, shrunk=2, enlarged=0, reasons={"film.older_exam": 12, "film.burned_in": 3, "row.no_label": 3},
        fields={}, warnings=("2 films are shown at a coarser spacing", "40 columns are unknown"),
        contract_sha256=CONTRACT.sha256, pipeline_sha256="1" * 64, content_sha256=None, seconds=1.0,
    )  # fmt: skip
    return Cohort.open(folder), report


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Cohort, PreparationReport]:
    return make(tmp_path_factory.mktemp("summary") / "cohort")


@pytest.fixture(scope="module")
def summary(made: tuple[Cohort, PreparationReport]) -> Summary:
    return summarise(*made, contract=CONTRACT, threshold=10, warnings=["a further sentence"])


def rows(summary: Summary, name: str) -> dict[str, int | None]:
    table = summary.table(name)
    assert table is not None
    return dict(table.rows)


def test_counts_are_those_of_the_cohort(summary: Summary) -> None:
    assert summary.patients == 120 and rows(summary, "label") == {"with cancer": 24, "without": 96}
    assert rows(summary, "field.breast_density") == {"a": 30, "b": 30, "c": 30, "d": 30, "missing": 0}
    assert rows(summary, "field.prior_biopsies") == {"0": 40, "1": 40, "2": 40, "3 or more": 0, "missing": 0}
    assert rows(summary, "field.brca") == {"no": 0, "yes": 0, "missing": 120}
    ages = rows(summary, "ages")
    assert sum(count or 0 for count in ages.values()) == 120 and ages["80 and above"] == 0
    assert rows(summary, "field.age") == {"known": 120, "missing": 0}
    bmi = summary.table("field.bmi")
    assert bmi is not None and [label for label, _ in bmi.rows][:2] == ["below 19.5", "19.5 to 24.5"]


def test_small_counts_and_what_would_tell_them_are_hidden(summary: Summary) -> None:
    for table in summary.tables:
        shown = [count for _, count in table.rows if count is not None]
        assert all(count == 0 or count >= 10 for count in shown), table.name
        hidden = [label for label, count in table.rows if count is None]
        assert len(hidden) != 1 or table.total is None, table.name
        if hidden and table.total is not None:
            assert table.total - sum(shown) >= 10 + len(hidden) - 1, table.name
    assert rows(summary, "views")["none"] is None and rows(summary, "view.R_MLO")["missing"] is None
    assert rows(summary, "films")["burned_in"] is None
    assert set(rows(summary, "vendor")) == {"ACME", "other or not known", "no film"}  # a rare maker is not named
    assert summary.warnings == (
        "fewer than 10 films are shown at a coarser spacing", "40 columns are unknown", "a further sentence"
    )  # fmt: skip


def test_a_cohort_below_the_threshold_shows_nothing(tmp_path: Path) -> None:
    small = summarise(*make(tmp_path / "c", n=8), contract=CONTRACT, threshold=10)
    assert small.patients is None and "fewer than 10 women" in headline(small)
    assert all(
        count is None or count == 0 for t in small.tables if t.name not in ("films", "rows") for _, count in t.rows
    )


def test_bands_are_public_and_every_level_has_its_place() -> None:
    for field in CONTRACT.fields:
        if field.kind == "number":
            edges = bands_of(field)
            assert len(edges) >= 2 and list(edges) == sorted(set(edges))
    assert bands_of(CONTRACT.field("age")) == (40, 50, 60, 70)


def test_levels_beside_numbers(tmp_path: Path) -> None:
    writer = CohortWriter(tmp_path / "c", site="s", contract_sha256=CONTRACT.sha256, pipeline_sha256="1" * 64, height=4,
                          width=4, n_features=CONTRACT.n_features)  # fmt: skip
    with writer:
        cells = [{"first_birth_age": "nulliparous"}, {"first_birth_age": 20}, {}, {"hrt": "combined", "brca": "yes"}]
        for k, cell in enumerate(cells):
            views = {} if cell else {"L_CC": np.zeros((2, 4, 4), dtype=np.float32)}
            writer.add(f"w{k}", views, encode(**cell) if cell else None, 0, {})
    cohort = Cohort.open(tmp_path / "c")
    labels, levels = levels_of(cohort, CONTRACT, CONTRACT.field("first_birth_age"))
    assert [labels[k] if k >= 0 else "" for k in levels] == ["nulliparous", "18.5 to 23.5", "", ""]
    assert levels_of(cohort, CONTRACT, CONTRACT.field("hrt"))[1].tolist() == [-1, -1, -1, 2]
    assert levels_of(cohort, CONTRACT, CONTRACT.field("brca"))[1].tolist() == [-1, -1, -1, 1]


def test_it_is_read_back_as_it_was_written(summary: Summary) -> None:
    assert Summary.from_json(summary.to_json()) == summary
    for damage in ("", "[]", "{}", summary.to_json().replace("120", "-1", 1), "[" * 9999):
        with pytest.raises(CohortError):
            Summary.from_json(damage)


def test_the_page_names_nobody_and_needs_nothing(made: tuple[Cohort, PreparationReport], tmp_path: Path) -> None:
    cohort, report = made
    summary = summarise(cohort, report, contract=CONTRACT, threshold=2)  # so low that the hostile maker is named
    page = render(summary)
    assert page == render(summary) and "<script>" not in page and "&lt;script&gt;ACME" in page
    assert not re.search(r"https?://|src=|href=|@import", page)
    assert not any(pseudonym in page for pseudonym in cohort.pseudonyms)
    write_page(summary, tmp_path / "cohort.html")
    assert (tmp_path / "cohort.html").read_text() == page and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(StorageError):
        write_page(summary, tmp_path / "absent" / "cohort.html")
    stream = io.StringIO()
    show(summary, Console(file=stream, width=100))
    said = stream.getvalue()
    assert HOSTILE in said and not any(pseudonym in said for pseudonym in cohort.pseudonyms)


def test_the_terminal_says_what_the_page_says(summary: Summary) -> None:
    stream = io.StringIO()
    show(summary, Console(file=stream, width=120))
    said = stream.getvalue()
    assert headline(summary) in said and "120 women are prepared, 24 of them with cancer" in said
    assert "burned_in" in said and "hidden" in said and "breast_density" in said
    assert (
        words_of("older_exam") and words_of("burned_in") and words_of("prevalent_cancer") and not words_of("prepared")
    )


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed (apt-get install chromium)")
@pytest.mark.parametrize("width", [500, 1280])
def test_the_page_is_drawn_legibly(summary: Summary, tmp_path: Path, width: int) -> None:
    write_page(summary, tmp_path / "cohort.html")
    shot = tmp_path / "shot.png"
    done = subprocess.run(
        [str(shutil.which("chromium")), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
         "--no-first-run", "--disable-sync", "--disable-background-networking", "--disable-component-update",
         "--hide-scrollbars",
         "--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},1600",
         f"--screenshot={shot}", (tmp_path / "cohort.html").as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    grey = np.asarray(Image.open(shot).convert("L"), dtype=np.float64)
    ink = np.abs(grey - np.median(grey)) > 100
    assert 0.005 < ink.mean() < 0.3 and ink[:400].any() and ink[-800:].any()
    assert not ink[:, -6:].any()  # nothing is cut off at the right edge


# Rules


def rules_of(made: tuple[Cohort, PreparationReport], threshold: int = 10) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for finding in findings(made[0], summarise(*made, contract=CONTRACT, threshold=threshold), contract=CONTRACT):
        assert RULES[finding.rule] in str(finding)
        found.setdefault(finding.rule, []).append(finding.subject)
    return found


def test_a_plain_cohort_breaks_no_rule_but_missingness(made: tuple[Cohort, PreparationReport]) -> None:
    assert set(rules_of(made)) == {"missingness"} and "brca" in rules_of(made)["missingness"]


@pytest.mark.parametrize(("telling", "rule", "field"), [
    ("value", "field_tells", "hrt"), ("number", "field_tells", "prs_z"), ("known", "missing_tells", "brca")
])  # fmt: skip
def test_a_leak_under_an_innocent_name_is_seen(tmp_path: Path, telling: str, rule: str, field: str) -> None:
    assert field in rules_of(make(tmp_path / "c", telling=telling))[rule]
    few = rules_of(make(tmp_path / "few", n=40, telling=telling))  # 8 with cancer: nothing is said of so few
    assert rule not in few


def test_prevalence_that_no_cohort_has(made: tuple[Cohort, PreparationReport], summary: Summary) -> None:
    table = summary.table("label")
    assert table is not None
    all_ill = replace(summary, tables=(replace(table, rows=(("with cancer", 110), ("without", 10))),))
    found = [f for f in findings(made[0], all_ill, contract=CONTRACT) if f.rule == "prevalence"]
    assert len(found) == 1 and "91.7%" in str(found[0])


def test_drift_is_said_with_numbers_and_chance_is_not_drift(tmp_path: Path, summary: Summary) -> None:
    again = summarise(*make(tmp_path / "again", seed=9), contract=CONTRACT, threshold=10)
    assert drift(summary, summary) == [] and drift(summary, again) == []
    other = summarise(*make(tmp_path / "other", density="abdddddd"), contract=CONTRACT, threshold=10)
    found = drift(summary, other)
    assert [f.subject for f in found] == ["breast_density"]
    assert "d from 25% to 74%" in str(found[0]) and RULES["drift"] in str(found[0])


@pytest.mark.parametrize(("table", "film", "conflict"), [
    (50.0, 50.0, False), (50.0, 52.0, False), (50.0, 53.0, True), (95.0, 89.0, False), (None, 50.0, False),
    (50.0, None, False), (89.0, 60.0, True),
])  # fmt: skip
def test_ages_that_cannot_both_be_right(table: float | None, film: float | None, conflict: bool) -> None:
    assert age_conflict(table, film) is conflict


def test_women_who_share_a_film_all_have_to_go() -> None:
    films = {"a": {"f1", "f2"}, "b": {"f2"}, "c": {"f3"}, "d": {"f4", "f5"}, "e": {"f5"}, "f": set(), "g": {"f5"}}
    assert shared_women({name: frozenset(hers) for name, hers in films.items()}) == {"a", "b", "d", "e", "g"}

def test_one_exam_in_two_cohorts(made: tuple[Cohort, PreparationReport], tmp_path: Path) -> None:
    cohort, _ = made
    other, _ = make(tmp_path / "other", n=20, key="z", images=110)  # other key; its first women with films are her last
    apart, _ = make(tmp_path / "apart", n=20, key="y", images=200)
    assert shared_patients(cohort, other) == tuple(f"w{k:04d}" for k in range(113, 120))
    assert shared_patients(cohort, apart) == () and len(shared_patients(cohort, cohort)) == 120
    assert len(list(view_digests(apart))) == apart.manifest.n_views


def test_words_keep_what_is_no_small_count() -> None:
    assert soften("column 12 of v1.0.0: 3 of 2,003 women, 0 men", 10) == (
        "column 12 of v1.0.0: fewer than 10 of 2,003 women, 0 men"
    )
