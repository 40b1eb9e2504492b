"""The audit as a person meets it: accounting by a real trainer, the bound from one run, table, page, exit code."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from client.privacy.accountant import Account
from client.trainer import train as train_module
from shared_model.errors import ConfigError, PromiseBrokenError
from simulations.privacy_audit import command
from simulations.privacy_audit.accounting import check_accounting
from simulations.privacy_audit.finding import Audit, Finding, Verdict
from simulations.privacy_audit.one_run import bound, epsilon_at_least, p_value, power
from simulations.privacy_audit.show import as_html, as_json, draw, write

Make = Callable[..., Any]


# --- accounting ------------------------------------------------------------------------------------------


def test_a_trainer_says_what_it_spent_over_rounds_and_restarts(small_study: Make) -> None:
    study = small_study(private=True, privacy__epsilon=50.0)
    finding = check_accounting(study.config("site-01"), study.protocol, study.arrays)[0]
    assert finding.verdict is Verdict.HELD, finding.words
    assert finding.figures["said_1"] < finding.figures["said_2"] < finding.figures["said_3"]
    assert finding.figures["pld_3"] == pytest.approx(finding.figures["said_3"], rel=0.01)


def test_an_accountant_that_begins_anew_each_round_is_caught(
    small_study: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    spent = train_module.spent

    def forgetful(site: Any, protocol: Any, *more: Any) -> Any:
        sigma, rate, steps = protocol.mechanisms(1)[0]
        alone = Account().add(noise_multiplier=sigma, sample_rate=rate, steps=steps)
        return spent(site, protocol, *more).model_copy(update={"epsilon": alone.epsilon(delta=protocol.privacy.delta)})

    monkeypatch.setattr(train_module, "spent", forgetful)
    study = small_study(private=True, privacy__epsilon=50.0)
    finding = check_accounting(study.config("site-01"), study.protocol, study.arrays)[0]
    assert finding.verdict is Verdict.BROKEN
    assert "after round 2 the site says" in finding.words


def test_a_round_that_is_not_answered_is_said(small_study: Make) -> None:
    study = small_study(private=True, privacy__epsilon=0.01)
    finding = check_accounting(study.config("site-01"), study.protocol, study.arrays)[0]
    assert finding.verdict is Verdict.BROKEN and "round 1 was not answered" in finding.words


# --- the bound from one run ------------------------------------------------------------------------------


def test_guessing_by_chance_refutes_nothing() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        assert bound(random.normal(size=200), random.random(200) < 0.5, delta=1e-5, error=1e-3).epsilon == 0.0


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 2.0, 4.0])
def test_randomised_response_is_bounded_by_its_own_epsilon(epsilon: float) -> None:
    """The tightest mechanism there is: the bound comes near its epsilon, and is above it no more often than it may."""
    random, above, best = np.random.default_rng(1), 0, 0.0
    for _ in range(100):
        inside = random.random(1000) < 0.5
        told = inside == (random.random(1000) < 1 / (1 + np.exp(-epsilon)))
        scores = told - 0.5 + random.random(1000) * 1e-6
        found = bound(scores, inside, delta=0.0, error=0.05).epsilon
        above += found > epsilon
        best = max(best, found)
    assert above <= 12  # 5 are expected at most; 13 or more have a probability of 1e-3
    assert best > 0.8 * epsilon


def test_more_right_guesses_refute_more_and_delta_weakens() -> None:
    terms = {"examples": 100, "guesses": 100, "delta": 0.0, "error": 0.05}
    bounds = [epsilon_at_least(right=right, **terms) for right in (50, 60, 80, 100)]
    assert bounds == sorted(bounds) and bounds[0] == 0.0 and bounds[-1] > 3.4
    assert epsilon_at_least(right=80, **{**terms, "delta": 1e-3}) < bounds[2]
    assert p_value(examples=10, guesses=10, right=10, epsilon=0.0, delta=0.0) == pytest.approx(2.0**-10)
    assert power(1000, delta=1e-5, error=0.05) > power(50, delta=1e-5, error=0.05) > 0


# --- what a person sees ----------------------------------------------------------------------------------

HELD = Finding(check="noise", title="noise, phase `<b>`", verdict=Verdict.HELD, words="as promised & <script>",
               figures={"spread": 1.0})  # fmt: skip
BROKEN = Finding(check="sensitivity", title="sensitivity", verdict=Verdict.BROKEN, words="4 x C")
LEFT = Finding(check="membership", title="membership", verdict=Verdict.LEFT_OUT, words="takes hours")


def audit_of(*findings: Finding) -> Audit:
    return Audit(study="unit", protocol_sha256="0" * 64, release="0.1.0", claims={"epsilon": 8.0, "delta": 1e-5},
                 findings=findings, seconds=61.0)  # fmt: skip


@pytest.mark.parametrize(("findings", "words"), [
    ((HELD,), "Nothing contradicts the promise: 1 checks held."),
    ((HELD, LEFT), "Nothing contradicts the promise: 1 checks held, 1 left out."),
    ((HELD, BROKEN), "The promise is broken: sensitivity."),
])  # fmt: skip
def test_the_headline_says_it_in_a_sentence(findings: tuple[Finding, ...], words: str) -> None:
    audit = audit_of(*findings)
    assert audit.headline == words
    console = Console(width=120, record=True, quiet=True)
    console.print(draw(audit))
    document = json.loads(as_json(audit))
    assert document["headline"] == words
    assert [f["verdict"] for f in document["findings"]] == [f.verdict.value for f in findings]
    assert words in as_html(audit)


def test_the_page_runs_nothing_and_shows_words_as_words() -> None:
    page = as_html(audit_of(HELD, BROKEN))
    assert "<script" not in page and "as promised &amp; &lt;script&gt;" in page
    assert "default-src 'none'" in page and "http" not in page.replace("http-equiv", "")
    assert page == as_html(audit_of(HELD, BROKEN))


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    from shared_model.errors import StorageError

    with pytest.raises(StorageError, match="cannot write into"):
        write(audit_of(HELD), tmp_path / "file")


# --- the command -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("overrides", "only", "words"), [
    (["privacy=none"], [], "nothing to audit"),
    (["study=smoke"], ["noises"], "no such check"),
])  # fmt: skip
def test_what_cannot_be_audited_is_refused_before_anything_is_made(
    overrides: list[str], only: list[str], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        command.audit_study(overrides, shadows=0, only=only, output=None, console=Console(quiet=True))


def test_a_whole_audit_of_a_small_study_holds_and_a_broken_one_ends_with_45(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Configuration, films, cohort, protocol, trainer: all of it, with the quick checks; then with a planted fault."""
    monkeypatch.setattr(command.noise, "REPEATS", 12)
    monkeypatch.setattr(command.sampling, "STEPS", 80)
    for check in (command.noise, command.sampling):  # the noise is new in each run: 1e-5 is too often for a test
        monkeypatch.setattr(check, "ALPHA", 1e-8)
    threads = threading.active_count()  # those of tests that ran before in this process are not the audit's
    terms = ["study=smoke", "patients=60", "rounds=2", f"cache={tmp_path / 'cache'}", "workers=1"]
    quick = [name for name in command.CHECKS if name != "membership"]
    audit = command.audit_study(terms, shadows=0, only=quick, output=tmp_path / "out", console=Console(quiet=True))
    assert audit.broken == () and {f.check for f in audit.findings} == set(quick)
    assert json.loads((tmp_path / "out" / "audit.json").read_text())["findings"]
    from client.training import local

    monkeypatch.setattr(local, "add_noise", lambda *_, **__: None)
    with pytest.raises(PromiseBrokenError, match="noise") as caught:
        command.audit_study(terms, shadows=0, only=["noise"], output=tmp_path / "out", console=Console(quiet=True))
    assert caught.value.exit_code == 45
    assert "broken" in (tmp_path / "out" / "audit.html").read_text()
    assert threading.active_count() - threads < 20
