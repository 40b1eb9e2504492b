"""`site ledger show | verify | what-if` and `site policy`: what an administrator reads, with stable exit codes."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import mammofed
from client.deploy.home import Party, SiteHome
from client.deploy.policy_file import Policy, policy_lines
from client.privacy.accountant import Account
from client.privacy.ledger import Ledger, LedgerEntry
from client.trainer.config import SiteConfig
from client.trainer.consent import women_of
from shared_model.certificates import Role
from shared_model.private_files import write_private
from shared_model.signed_protocol import SignedProtocol
from tests.conftest import SmallStudy
from tests.signed import COORDINATOR, KEY, NAME


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`mammofed ...` with its exit code, as a shell would see it."""
    monkeypatch.setenv("COLUMNS", "250")

    def command(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["mammofed", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            mammofed.main()
        except SystemExit as end:
            code = int(end.code or 0)
        return Done(code, *capsys.readouterr())

    return command


@pytest.fixture
def study(small_study: Callable[..., SmallStudy]) -> SmallStudy:
    return small_study(private=True)


@pytest.fixture
def home(tmp_path: Path, study: SmallStudy) -> SiteHome:
    config = SiteConfig.read(study.files["site-01"])
    made = SiteHome.create(tmp_path / "home", cohort=config.cohort, role=Role.SITE)
    write_private(made.courier / "coordinator.json", COORDINATOR.model_dump_json().encode())
    write_private(made.trainer / "party.json", Party(site="site-01", role=Role.SITE).model_dump_json().encode())
    write_private(made.trainer / "coordinator.json", COORDINATOR.model_dump_json().encode())
    signed = SignedProtocol.sign(study.protocol, name=NAME, key=KEY)
    write_private(made.inbox / f"{study.protocol.study}-{signed.sha256[:16]}.json", signed.to_json().encode())
    return made


def policy(home: SiteHome, **changes: Any) -> None:
    values = Policy.read(home.policy_file).model_dump(mode="json") | changes
    write_private(home.policy_file, Policy.model_validate(values).to_yaml().encode())


def spend(home: SiteHome, rounds: int, **changes: Any) -> Ledger:
    ledger = Ledger(home.state / "ledger.json")
    values: dict[str, Any] = {"group": "train", "study": "earlier", "protocol_sha256": "a" * 64, "attempt": 1,
                              "noise_multiplier": 1.0, "sample_rate": 0.25, "steps": 4} | changes  # fmt: skip
    women = women_of(home)["train"]
    for number in range(1, rounds + 1):
        ledger.reserve(LedgerEntry(round=number, **values), budget=100.0, delta=1e-5, pseudonyms=women)
    return ledger


def epsilon(rounds: int) -> float:
    return Account.from_lists([[1.0, 0.25, 4 * rounds]]).epsilon(delta=1e-5)


def test_show_says_what_is_spent_and_left_by_group_study_and_entry(run: Run, home: SiteHome) -> None:
    assert "Nothing was spent here yet" in run("site", "ledger", "show", home.folder).out
    spend(home, 2).settle(1)
    done = run("site", "ledger", "show", home.folder)
    assert (done.code, done.err) == (0, "")
    for words in (f"{epsilon(2):.3f}", f"{8.0 - epsilon(2):.3f}", "trained on", "earlier", "aaaaaaaaaaaa",
                  "sigma 1, q 0.25, 4 steps", "settled", "reserved: it counts", "limit 8"):  # fmt: skip
        assert words in done.out, words
    values = json.loads(run("site", "ledger", "show", home.folder, "--json").out)
    assert values["groups"][0]["epsilon"] == epsilon(2) and len(values["entries"]) == 2
    assert values["groups"][0]["patients"] == len(women_of(home)["train"])
    for woman in women_of(home)["train"]:
        assert woman not in done.out


def test_verify_says_what_holds_and_ends_with_the_errors_code(run: Run, home: SiteHome, tmp_path: Path) -> None:
    ledger = spend(home, 1)
    shutil.copy(ledger.path, tmp_path / "copy")
    ledger.settle(1)
    done = run("site", "ledger", "verify", home.folder)
    assert done.code == 0 and "whole and in order" in done.out and "they agree" in done.out
    assert "nobody else vouches for it" in done.out
    whole = ledger.path.read_bytes()
    shutil.copy(tmp_path / "copy", ledger.path)
    old = run("site", "ledger", "verify", home.folder)
    assert old.code == 70 and "older copy was put back" in old.err and "Traceback" not in old.err
    ledger.path.write_bytes(whole.replace(b'"noise_multiplier":1.0', b'"noise_multiplier":9.0'))
    changed = run("site", "ledger", "verify", home.folder)
    assert changed.code == 70 and "damaged" in changed.err


def test_what_if_tells_the_cost_the_changes_and_the_refusals_before_anybody_approves(
    run: Run, home: SiteHome, study: SmallStudy, tmp_path: Path
) -> None:
    spend(home, 1)
    protocol = study.protocol
    plan = Account.from_lists([[1.0, 0.25, 4]])
    for sigma, rate, steps in protocol.mechanisms(protocol.rounds):
        plan = plan.add(noise_multiplier=sigma, sample_rate=rate, steps=steps)
    before = (home.state / "ledger.json").read_bytes()
    done = run("site", "ledger", "what-if", home.folder, protocol.study)
    assert done.code == 0, done.err
    assert f"{epsilon(1):.3f}" in done.out and f"{plan.epsilon(delta=1e-5):.3f}" in done.out
    policy(home, least_noise=2.0, most_rounds=1, epsilon_limit=0.5)
    (tmp_path / "protocol.json").write_text(protocol.to_json())
    done = run("site", "ledger", "what-if", home.folder, tmp_path / "protocol.json")
    assert "least_noise: 2 instead of 1" in done.out and "most_rounds" in done.out
    assert "the site abstains before its end" in done.out
    values = json.loads(run("site", "ledger", "what-if", home.folder, protocol.study, "--json").out)
    assert [group["group"] for group in values["groups"]] == ["train", "metrics"]
    assert values["groups"][0]["affordable"] is False and values["groups"][0]["after"] < plan.epsilon(delta=1e-5)
    assert (home.state / "ledger.json").read_bytes() == before
    assert run("site", "ledger", "what-if", home.folder, "nothing").code == 10


def test_policy_says_what_each_line_means_what_is_open_and_what_is_missing(run: Run, home: SiteHome) -> None:
    done = run("site", "policy", home.folder)
    assert done.code == 0 and all(name in done.out for name in policy_lines())
    assert "then the site abstains" in done.out and "missing" not in done.out
    policy(home, epsilon_limit=None)
    assert "open" in run("site", "policy", home.folder).out
    text = "".join(line for line in home.policy_file.read_text().splitlines(True) if "least_noise" not in line)
    write_private(home.policy_file, text.encode())
    old = run("site", "policy", home.folder)
    assert old.code == 10 and policy_lines()["least_noise"] in old.out
    assert "least_noise: this line is missing" in old.err
    silent = run("site", "policy", home.folder, "--check")
    assert (silent.code, silent.out) == (10, "")
    write_private(home.policy_file, (text + policy_lines()["least_noise"] + "\n").encode())
    assert run("site", "policy", home.folder, "--check") == Done(0, "", "")


@pytest.mark.parametrize("command", [("ledger", "show"), ("ledger", "verify"), ("policy",)])
def test_a_folder_that_is_no_home_is_said_so(run: Run, tmp_path: Path, command: tuple[str, ...]) -> None:
    done = run("site", *command, tmp_path)
    assert done.code == 10 and "Traceback" not in done.err
