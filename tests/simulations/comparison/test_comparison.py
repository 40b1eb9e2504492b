"""The comparison of hand-made runs: rows, paired and unpaired differences, unseen vendors, broken runs, exit codes."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from shared_model.errors import StorageError
from shared_model.evaluation import Scores
from shared_model.evaluation.auc import paired_delong, roc_auc
from shared_model.evaluation.kept import keep_scores, kept_path
from shared_model.protocol import Protocol
from simulations.comparison import Job, compare, comparison_table, find_runs, write_comparison
from simulations.comparison.sweep import Sweep, show
from simulations.composition import compose_config
from tests.handmade_run import SITES, model_report, summary_values, write_run_dir

WOMEN = 200
MAKERS = np.array([f"SYNTH {letter}" for letter in "ABCDE"])[np.arange(WOMEN) % 5]


@pytest.fixture(scope="module")
def launched() -> dict[str, Any]:
    """What a default study writes into launch.json."""
    return compose_config(["privacy=none"])


def make_run(
    run_dir: Path, *overrides: str, launched: dict[str, Any], scores: int | None = 0, women: str = "w",
    leave_out: str | None = None, private: bool = True, **changes: Any,
) -> Job:  # fmt: skip
    """A run as a sweep leaves it. scores: seed of the kept ones, None for none. women: who they are."""
    protocol = write_run_dir(run_dir, private=private, **changes)
    cohort = launched["cohort"] | {"leave_out": leave_out}
    (run_dir / "launch.json").write_text(json.dumps(launched | {"cohort": cohort}))
    (run_dir / ".hydra").mkdir()
    (run_dir / ".hydra" / "overrides.yaml").write_text(json.dumps(overrides))
    if scores is not None:
        keep(run_dir, protocol, seed=scores, women=women)
    return Job(run_dir=run_dir, overrides=overrides, exit_code=0)


def keep(run_dir: Path, protocol: Protocol, *, seed: int, women: str) -> None:
    keep_scores(kept_path(run_dir / "sites" / "evaluator" / "state", protocol), fake_scores(seed),
                pseudonyms=[f"{women}{i}" for i in range(WOMEN)], vendors=MAKERS.tolist())  # fmt: skip


def fake_scores(seed: int) -> Scores:
    labels = (np.random.default_rng(7).random(WOMEN) < 0.3).astype(np.uint8)
    fused, image, clinical = np.random.default_rng(seed).normal(size=(3, WOMEN)) + labels
    return Scores(labels, fused, image, clinical, np.ones((WOMEN, 2)))


def printed(document: dict[str, Any], width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(comparison_table(document))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    return str(text)


def test_a_row_says_what_a_study_came_to(tmp_path: Path, launched: dict[str, Any]) -> None:
    job = make_run(tmp_path / "0", "strategy=fedprox", launched=launched)
    document = compare([job])
    (row,) = document["jobs"]
    assert (row["status"], row["exit_code"], row["error"]) == ("COMPLETE", 0, "")
    assert row["auc"]["fused"] == {"auc": 0.873, "auc_low": 0.843, "auc_high": 0.898}
    assert [row["auc"][m]["auc"] for m in ("image", "clinical", "public_weights")] == [0.842, 0.651, 0.79]
    assert (row["sites"], row["contributed"]) == (4, 4)
    assert row["worst_site"]["site"] == "north" and row["worst_site"]["auc"] == 0.88  # west released none
    assert (row["epsilon"], row["epsilon_is_known"]) == (7.4321, True)
    assert (row["seconds"], row["bytes"]) == (214.0, 81_000_000)
    assert row["difference"] is None
    text = printed(document)
    for words in ("strategy=fedprox", "COMPLETE", "0.873", "0.843-0.898", "the first", "0.842", "0.651", "0.790",
                  "4 of 4", "north", "7.43", "3 min 34 s", "81.0 MB"):  # fmt: skip
        assert words in text, words


def test_the_difference_is_paired_where_the_women_are_the_same(tmp_path: Path, launched: dict[str, Any]) -> None:
    jobs = [make_run(tmp_path / str(i), f"seed={i}", launched=launched, scores=i) for i in range(2)]
    document = compare(jobs)
    one, two = fake_scores(0), fake_scores(1)
    gap = paired_delong(one.labels, two.fused, one.fused, confidence=0.95)
    expected = {"value": gap.value, "low": gap.low, "high": gap.high, "p": gap.p, "method": "paired_delong"}
    assert document["jobs"][1]["difference"] == expected
    text = printed(document)
    assert f"{gap.value:+.3f}" in text and f"p = {gap.p:.3f}" in text and "paired DeLong" in text
    assert "npaired" not in text


@pytest.mark.parametrize("second", [{"women": "other"}, {"scores": None}])
def test_on_other_women_or_without_scores_it_is_unpaired_and_says_so(
    tmp_path: Path, launched: dict[str, Any], second: dict[str, Any]
) -> None:
    jobs = [make_run(tmp_path / "0", "a=1", launched=launched),
            make_run(tmp_path / "1", "a=2", launched=launched, **second)]  # fmt: skip
    document = compare(jobs)
    gap = document["jobs"][1]["difference"]
    assert (gap["method"], gap["p"], gap["value"]) == ("unpaired", None, 0.0)
    assert gap["low"] < -0.03 and gap["high"] > 0.03
    text = printed(document)
    assert "unpaired" in text and "too wide" in text


def test_a_vendor_that_no_site_has_is_told_apart(tmp_path: Path, launched: dict[str, Any]) -> None:
    jobs = [make_run(tmp_path / "0", "cohort.leave_out=null", launched=launched, scores=0),
            make_run(tmp_path / "1", "cohort.leave_out=B", launched=launched, scores=1, leave_out="B")]  # fmt: skip
    document = compare(jobs)
    first, second = (job["vendors"] for job in document["jobs"])
    assert (first["left_out"], [g["vendors"] for g in first["unseen"]]) == (None, [["E"]])
    assert (second["left_out"], [g["vendors"] for g in second["unseen"]]) == ("B", [["B"], ["E"]])
    assert second["seen"]["vendors"] == ["A", "C", "D"] and second["seen"]["n"] == 3 * WOMEN // 5
    group, of_b = second["unseen"][0], MAKERS == "SYNTH B"
    one, two = fake_scores(0), fake_scores(1)
    assert (group["n"], group["positives"]) == (of_b.sum(), two.labels[of_b].sum())
    assert group["auc"] == roc_auc(two.labels[of_b], two.fused[of_b])
    gap = paired_delong(two.labels[of_b], two.fused[of_b], one.fused[of_b], confidence=0.95)
    assert group["difference"]["value"] == gap.value and group["difference"]["p"] == gap.p
    text = printed(document)
    assert "leave_out=B" in text and "unseen B" in text and "unseen E" in text and "seen A C D" in text
    assert f"{gap.value:+.3f}" in text and f"{group['auc']:.3f}" in text


def test_without_a_left_out_vendor_the_table_is_silent_about_vendors(tmp_path: Path, launched: dict[str, Any]) -> None:
    document = compare([make_run(tmp_path / "0", launched=launched)])
    assert document["jobs"][0]["vendors"]["unseen"][0]["vendors"] == ["E"]  # the document tells it all the same
    assert "unseen" not in printed(document)


def test_a_handful_of_women_of_a_vendor_is_not_told(tmp_path: Path, launched: dict[str, Any]) -> None:
    job = make_run(tmp_path / "0", launched=launched, scores=None, leave_out="C")
    makers = ["SYNTH C"] * 9 + ["SYNTH A"] * (WOMEN - 9)
    path = kept_path(job.run_dir / "sites" / "evaluator" / "state", Protocol.read(job.run_dir / "protocol.json"))
    keep_scores(path, fake_scores(0), pseudonyms=[str(i) for i in range(WOMEN)], vendors=makers)
    document = compare([job])
    write_comparison(document, tmp_path / "comparison.json")
    groups = document["jobs"][0]["vendors"]
    assert [(g["vendors"], g["n"], g["auc"]) for g in groups["unseen"]] == [(["C"], None, None), (["E"], None, None)]
    assert groups["seen"]["n"] == WOMEN - 9 and "unseen C" in printed(document)


def test_public_films_have_no_vendors_that_we_know(tmp_path: Path, launched: dict[str, Any]) -> None:
    public = launched | {"cohort": {"kind": "manifest"}}
    make_run(tmp_path / "0", launched=launched)
    (tmp_path / "0" / "launch.json").write_text(json.dumps(public))
    (row,) = compare(find_runs([tmp_path / "0"]))["jobs"]
    assert (row["vendors"], row["status"], row["error"]) == (None, "COMPLETE", "")


def test_what_all_jobs_share_is_said_once(tmp_path: Path, launched: dict[str, Any]) -> None:
    jobs = [make_run(tmp_path / str(i), "rounds=12", f"strategy={name}", launched=launched)
            for i, name in enumerate(("fedavg", "fedadam"))]  # fmt: skip
    document = compare(jobs)
    assert document["common"] == ["rounds=12"]
    assert [job["differs"] for job in document["jobs"]] == [["strategy=fedavg"], ["strategy=fedadam"]]
    text = printed(document, width=100)
    assert text.count("rounds=12") == 1 and "strategy=fedadam" in text


def test_a_study_that_broke_is_a_row_and_hides_no_other(tmp_path: Path, launched: dict[str, Any]) -> None:
    refused = Job(run_dir=tmp_path / "0", overrides=("sites=0",), exit_code=10, error="sites: [bold]wrong[/bold]")
    jobs = [refused, make_run(tmp_path / "1", "sites=4", launched=launched)]
    document = compare(jobs)
    write_comparison(document, tmp_path / "comparison.json")
    assert [job["status"] for job in document["jobs"]] == ["FAILED", "COMPLETE"]
    assert document["jobs"][0]["error"] == "sites: [bold]wrong[/bold]" and document["jobs"][1]["difference"] is None
    text = printed(document)
    assert "0: sites: [bold]wrong[/bold]" in text and "0.873" in text


@pytest.mark.parametrize(("name", "content", "words"), [
    ("summary.json", "{}", "damaged"), ("summary.json", "[", "not JSON"), ("protocol.json", "{}", "protocol"),
    ("launch.json", "[]", "not a JSON object"),
])  # fmt: skip
def test_a_damaged_run_is_a_row_with_the_reason(
    tmp_path: Path, launched: dict[str, Any], name: str, content: str, words: str
) -> None:
    make_run(tmp_path / "0", launched=launched)
    (tmp_path / "0" / name).write_text(content)
    (row,) = compare(find_runs([tmp_path / "0"]))["jobs"]
    assert row["status"] == "FAILED" and words in row["error"]


def test_damaged_scores_or_settings_cost_the_pairing_but_not_the_row(tmp_path: Path, launched: dict[str, Any]) -> None:
    jobs = [make_run(tmp_path / str(i), f"seed={i}", launched=launched) for i in range(3)]
    next((tmp_path / "1").rglob("*.test.safetensors")).write_bytes(b"cut")
    (tmp_path / "2" / "launch.json").write_text('{"cohort": {"kind": "synthetic", "shift": "x"}}')
    whole, cut, lost = compare(jobs)["jobs"]
    assert cut["status"] == "COMPLETE" and "is damaged" in cut["error"] and cut["difference"]["method"] == "unpaired"
    assert lost["difference"]["method"] == "paired_delong"
    assert lost["vendors"] is None and "launch.json" in lost["error"]
    assert whole["error"] == ""


def test_lost_answers_make_epsilon_a_lower_bound(tmp_path: Path, launched: dict[str, Any]) -> None:
    lost = {site: {"contributed": 12} for site in SITES} | {"west": {"contributed": 3, "failed": 9}}
    document = compare([make_run(tmp_path / "0", launched=launched, participation=lost)])
    assert document["jobs"][0]["epsilon_is_known"] is False
    assert "at least 7.43" in printed(document, width=100)


def test_without_privacy_there_is_no_epsilon(tmp_path: Path, launched: dict[str, Any]) -> None:
    job = make_run(tmp_path / "0", launched=launched, private=False, privacy={}, privacy_mode="none")
    document = compare([job])
    assert document["jobs"][0]["epsilon"] is None and "none" in printed(document)


def test_an_unfinished_study_shows_how_far_it_came(tmp_path: Path, launched: dict[str, Any]) -> None:
    metrics = {"held_out": None, "selection": [], "sites": {}}
    job = make_run(tmp_path / "0", "x=1", launched=launched, status="STOPPED", rounds_completed=5, metrics=metrics,
                   scores=None, model=None)  # fmt: skip
    document = compare([job])
    assert "STOPPED" in printed(document, 120) and "5 of 12 rounds" in printed(document, 120)
    assert document["jobs"][0]["auc"]["fused"] is None


def test_the_sweep_ends_with_its_table_files_and_exit_code(
    tmp_path: Path, launched: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = Sweep()
    assert sweep.finish() == 0 and capsys.readouterr().out == ""  # no multirun: nothing to say
    for i in range(2):
        make_run(tmp_path / str(i), f"seed={i}", launched=launched, scores=i)
        sweep.add(hydra_config(tmp_path, i), 0, "")
    assert sweep.finish() == 0
    out = capsys.readouterr().out
    assert "Comparison" in out and "seed=1" in out
    document = json.loads((tmp_path / "comparison.json").read_text())
    assert [job["exit_code"] for job in document["jobs"]] == [0, 0]
    page = (tmp_path / "comparison.html").read_text()
    assert "seed=1" in page and "<script" not in page and "http" not in page.replace("http://www.w3.org", "")
    sweep.add(hydra_config(tmp_path, 2), 10, "sites: too few")
    sweep.add(hydra_config(tmp_path, 3), 61, "")
    assert sweep.finish() == 10


def hydra_config(folder: Path, number: int) -> Any:
    return SimpleNamespace(
        sweep=SimpleNamespace(dir=str(folder)), runtime=SimpleNamespace(output_dir=str(folder / str(number))),
        overrides=SimpleNamespace(task=[f"seed={number}"]),
    )  # fmt: skip


def test_runs_that_lie_there_say_by_exit_code_if_all_are_complete(tmp_path: Path, launched: dict[str, Any]) -> None:
    make_run(tmp_path / "sweep" / "0", "a=1", launched=launched)
    make_run(tmp_path / "sweep" / "1", "a=2", launched=launched, status="INCOMPLETE", rounds_completed=3)
    assert show(find_runs([tmp_path / "sweep" / "0"]), None) == 0
    assert show(find_runs([tmp_path / "sweep"]), None) == 60
    assert not (tmp_path / "sweep" / "comparison.json").exists()


def test_a_sweeps_folder_stands_for_its_jobs_in_order(tmp_path: Path, launched: dict[str, Any]) -> None:
    for number in (10, 2, 0):
        make_run(tmp_path / str(number), f"seed={number}", launched=launched)
    (tmp_path / "0" / "launch.json").unlink()  # a job that was refused at once
    (tmp_path / "multirun.yaml").write_text("")
    (tmp_path / "notes").mkdir()
    assert [job.overrides for job in find_runs([tmp_path])] == [("seed=0",), ("seed=2",), ("seed=10",)]


@pytest.mark.parametrize("content", ["a: 1", "[1]", "[", "- !!python/name:os.system", "x" * (1 << 21), "[" * 100_000])
def test_overrides_that_are_none_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "overrides.yaml").write_text(content)
    with pytest.raises(StorageError, match="damaged"):
        find_runs([tmp_path])


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="neither a run nor a sweep"):
        find_runs([tmp_path])


def test_worst_site_and_models_without_auc_are_left_out(tmp_path: Path, launched: dict[str, Any]) -> None:
    values = summary_values(write_run_dir(tmp_path / "x"))["metrics"]
    values["held_out"]["models"]["fused"] = model_report(0.7) | {"auc_low": None, "auc_high": None}
    values["sites"] = {"north": {"auc": None}}
    job = make_run(tmp_path / "0", launched=launched, metrics=values)
    document = compare([job])
    write_comparison(document, tmp_path / "comparison.json")
    assert document["jobs"][0]["worst_site"] is None
