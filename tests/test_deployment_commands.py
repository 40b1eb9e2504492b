"""The commands of a coordinator and a site, as people and scripts meet them: words, next steps, exit codes, again."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import click
import pytest
from safetensors.numpy import save_file

import mammofed
from client.deploy.home import SiteHome
from client.deploy.identity import SiteIdentity
from client.deploy.inbox import Inbox
from server.control.roll import FILE, Roll
from server.deploy.home import CoordinatorHome
from server.deploy.studies import StudyFolder, Wish
from shared_model.certificates import Member, Role
from shared_model.control import BeatRequest, TrainerState
from shared_model.errors import ConfigError, EnrolmentError, ProtocolError, SignatureError
from shared_model.fingerprint import six_words
from shared_model.messages import weights_sha256
from shared_model.private_files import write_private
from shared_model.protocol import Protocol
from tests.conftest import SmallStudy as Study


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    monkeypatch.setenv("COLUMNS", "250")


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`mammofed ...` with its exit code, as a shell would see it."""

    def command(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["mammofed", *map(str, arguments)])
        capsys.readouterr()
        try:
            mammofed.main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        found = capsys.readouterr()
        return Done(code, found.out, found.err)

    return command


# --- every command ---


def commands(group: click.Group, *words: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, *words, name)
        else:
            yield (*words, name), command


DEPLOYMENT = [(words, command) for words, command in commands(mammofed.cli) if words[0] in ("server", "site", "audit")]


@pytest.mark.parametrize(("words", "command"), DEPLOYMENT, ids=[" ".join(words) for words, _ in DEPLOYMENT])
def test_every_command_has_an_example_of_itself_whose_options_there_are(
    words: tuple[str, ...], command: click.Command
) -> None:
    text = command.help or ""
    examples = re.findall(r"Example:\s+(.+)", text)
    assert examples, f"`mammofed {' '.join(words)} --help` shows no example"
    options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    for example in examples:
        given = shlex.split(example)
        assert given[: len(words) + 1] == ["mammofed", *words]
        used = {word.split("=")[0] for word in given if word.startswith("--")}
        assert used <= options, used - options
        required = {p.name for p in command.params if isinstance(p, click.Argument) and p.required}
        assert len([word for word in given[len(words) + 1 :] if not word.startswith("--")]) >= len(required)


def arguments_of(command: click.Command) -> list[str | None]:
    return [parameter.name for parameter in command.params if isinstance(parameter, click.Argument)]


# `init` makes a home; the site's doctor examines whatever folder there is.
OF_A_HOME = [words for words, command in DEPLOYMENT
             if arguments_of(command)[:1] == ["home"] and words[-1] != "init"
             and words != ("site", "doctor")]  # fmt: skip


@pytest.mark.parametrize("words", OF_A_HOME, ids=" ".join)
def test_every_command_of_a_home_says_what_makes_one(run: Run, tmp_path: Path, words: tuple[str, ...]) -> None:
    names = arguments_of(dict(DEPLOYMENT)[words])
    given: list[object] = [tmp_path / "nothing", *(["x"] * (len(names) - 1))]
    if words[-1] == "propose":
        (tmp_path / "p.yaml").write_text("study: x")
        given = [tmp_path / "nothing", tmp_path / "p.yaml", "--weights", tmp_path / "p.yaml"]
    if words[-1] == "rollback":
        given += ["--without", "x", "--to", tmp_path / "new"]
    done = run(*words, *given)
    assert done.code == 10, (done.out, done.err)
    assert re.search(r"is no (coordinator|site)'s home", done.err) and f"mammofed {words[0]} init" in done.err
    assert "Traceback" not in done.err and not (tmp_path / "nothing").exists()


# --- a consortium by its commands ---


@dataclass
class Consortium:
    run: Run
    folder: Path
    study: Study

    @property
    def hub(self) -> Path:
        return self.folder / "hub"

    def site(self, name: str) -> Path:
        return self.folder / "homes" / name

    def init(self) -> Done:
        return self.run("server", "init", self.hub, "--name", "hub", "--host", "localhost", "--port", 9443,
                        "--enrol-port", 9500, "--link-port", 9600)  # fmt: skip

    def join(self, name: str, role: str = "site") -> dict[str, str]:
        """Invited, keys made, asked; returns the words."""
        invited = self.run("server", "invite", self.hub, name, "--role", role)
        assert invited.code == 0, invited.err
        hint = next(line for line in invited.err.splitlines() if "mammofed site init" in line)
        line = hint.replace("HOME", str(self.site(name))).replace("TOKEN", invited.out.split()[0])
        made = self.run(*shlex.split(line.replace("COHORT", str(self.study.config(name).cohort)))[1:])
        assert made.code == 0, made.err
        identity = SiteHome.open(self.site(name)).identity()
        home = CoordinatorHome.open(self.hub)
        with home.enrolment() as enrolment:  # the control service would carry it
            request = identity.request()
            assert request is not None
            enrolment.answer(request)
        return identity.words(six_words)

    def enrol(self, name: str, role: str = "site") -> None:
        words = self.join(name, role)
        done = self.run("server", "enrol", self.hub, name, "--certificate", words["certificate"], "--node",
                        words["node"])  # fmt: skip
        assert done.code == 0, done.err
        Inbox(self.site(name) / "courier", site=name, release="0.1.0").pin(CoordinatorHome.open(self.hub).coordinator)

    def enrol_all(self) -> None:
        for name in ("site-01", "site-02"):
            self.enrol(name)
        self.enrol("evaluator", "evaluator")

    def propose(self) -> Done:
        (self.folder / "p.json").write_text(self.study.protocol.to_json())
        save_file(dict(self.study.arrays), self.folder / "w.safetensors")
        weights = self.folder / "w.safetensors"
        return self.run("server", "propose", self.hub, self.folder / "p.json", "--weights", weights)

    def deliver(self, name: str) -> None:
        """What the courier does."""
        signed = (CoordinatorHome.open(self.hub).study("unit") / "signed.json").read_bytes()
        place = self.site(name) / "courier" / "inbox"
        write_private(place / f"unit-{self.study.protocol.sha256[:16]}.json", signed)


@pytest.fixture
def consortium(run: Run, tmp_path: Path, small_study: Callable[..., Study]) -> Consortium:
    study = small_study(private=True)
    values = study.protocol.model_dump(mode="json")
    values["initial_weights"]["sha256"] = weights_sha256(study.arrays)
    made = Consortium(run, tmp_path, replace(study, protocol=Protocol.create(values)))
    assert made.init().code == 0
    return made


def test_a_study_from_two_empty_folders_to_its_start_each_command_naming_the_next(consortium: Consortium) -> None:
    run, hub = consortium.run, consortium.hub
    consortium.enrol_all()
    done = consortium.propose()
    assert done.code == 0 and f"mammofed server start {hub} unit" in done.out
    consortium.deliver("site-01")
    done = run("site", "review", consortium.site("site-01"))
    assert done.code == 0 and "unit (proposed)" in done.out and "epsilon" in done.out
    assert f"mammofed site approve {consortium.site('site-01')} unit" in done.out
    done = run("site", "approve", consortium.site("site-01"), "unit", "--yes")
    assert done.code == 0 and "unit is approved" in done.out and "Next" in done.out
    assert CoordinatorHome.open(hub).signing_key.public.fingerprint in done.out, "whose key it is, at the first yes"
    done = run("site", "approve", consortium.site("site-01"), "unit", "--yes")
    assert done.code == 0 and "First approval" not in done.out
    status = json.loads(run("site", "status", consortium.site("site-01"), "--json").out)
    assert status["studies"]["unit"]["standing"] == "approved" and status["role"] == "site"
    done = run("server", "start", hub, "unit")
    assert done.code == 0 and f"mammofed server status {hub}" in done.out
    status = json.loads(run("server", "status", hub, "--json").out)
    assert [(s["study"], s["wanted"]) for s in status["studies"]] == [("unit", "running")] and not status["daemon"]
    assert [(m["site"], m["role"], m["state"]) for m in status["members"]] == [
        ("evaluator", "evaluator", "confirmed"), ("site-01", "site", "confirmed"), ("site-02", "site", "confirmed")
    ]  # fmt: skip
    done = run("site", "decline", consortium.site("site-01"), "unit")
    assert done.code == 0 and "is declined; nothing is trained for it" in done.out and "Next" in done.out
    assert list((consortium.site("site-01") / "trainer" / "protocols").iterdir()) == []
    done = run("server", "revoke", hub, "site-02", "--reason", "keys were lost")
    assert done.code == 0 and f"mammofed server invite {hub} site-02" in done.out


def test_what_a_command_did_is_on_record(consortium: Consortium) -> None:
    consortium.enrol("site-01")
    consortium.run("server", "revoke", consortium.hub, "site-01", "--reason", "lost")
    with CoordinatorHome.open(consortium.hub).audit_log() as log:
        found = [(entry.kind, entry.fields.get("site")) for entry in log.entries()]
    assert found[-3:] == [("invited", "site-01"), ("enrolled", "site-01"), ("revoked", "site-01")]
    done = consortium.run("audit", "verify", consortium.hub / "audit.jsonl")
    assert done.code == 0, done.err


def test_an_invitation_says_all_that_the_site_must_type(consortium: Consortium) -> None:
    """Another enrolment port than the usual one, and the evaluator's role: the line that is printed works as it is."""
    consortium.join("evaluator", "evaluator")
    identity = SiteHome.open(consortium.site("evaluator")).identity()
    assert (identity.settings.role, identity.settings.port, identity.settings.enrolling) == (Role.EVALUATOR, 9443, 9500)


def test_words_that_differ_are_an_error_and_nobody_is_enrolled(consortium: Consortium) -> None:
    words = consortium.join("site-01")
    done = consortium.run("server", "enrol", consortium.hub, "site-01", "--certificate", words["node"], "--node",
                          words["node"])  # fmt: skip
    assert done.code == EnrolmentError.exit_code and "differs: certificate" in done.err
    done = consortium.run("server", "enrol", consortium.hub)
    assert "site-01" in done.out and f"mammofed server enrol {consortium.hub} SITE" in done.out


@pytest.mark.parametrize(("arguments", "code", "words"), [
    (("server", "init", "HUB", "--name", "hub", "--host", "h"), 10, "coordinator's home already"),
    (("server", "init", "NEW", "--name", "No Name", "--host", "h"), 10, "name: "),
    (("server", "init", "NEW", "--name", "hub", "--host", "h", "--port", "8444"), 10, "three different ones"),
    (("server", "init", "NEW", "--name", "hub", "--host", "h", "--port", "0"), 10, "port: "),
    (("server", "init", "NEW", "--name", "hub"), 2, "--host"),
    (("server", "invite", "HUB", "site-01", "--hours", "1000"), 90, "short-lived"),
    (("server", "invite", "HUB", "site-01", "--hours", "nan"), 90, "short-lived"),
    (("server", "revoke", "HUB", "nobody"), 90, "no member of that name"),
    (("server", "enrol", "HUB", "nobody", "--certificate", "a", "--node", "b"), 90, "no member of that name"),
    (("server", "start", "HUB", "nothing"), 10, "there is no study nothing"),
    (("server", "stop", "HUB", "nothing"), 10, "there is no study nothing"),
    (("server", "resume", "HUB", "nothing"), 10, "there is no study nothing"),
    (("server", "revoke", "HUB"), 2, "Missing argument"),
    (("server", "no-such-command"), 2, "No such command"),
])  # fmt: skip
def test_errors_of_the_coordinators_commands(
    consortium: Consortium, arguments: tuple[str, ...], code: int, words: str
) -> None:
    places = {"HUB": str(consortium.hub), "NEW": str(consortium.folder / "new")}
    done = consortium.run(*(places.get(word, word) for word in arguments))
    assert (done.code, words in done.err) == (code, True), done
    assert "Traceback" not in done.err and not (consortium.folder / "new").exists()


@pytest.mark.parametrize("name", ["North", "a b", "../north", "", "x" * 64, "north-courier"])
def test_a_name_that_is_none_is_refused_before_anything_is_written(consortium: Consortium, name: str) -> None:
    done = consortium.run("server", "invite", consortium.hub, name)
    assert done.code in (10, 30, 90, 91), done
    assert done.out == "" and "Traceback" not in done.err


@pytest.mark.parametrize(("change", "code", "words"), [
    ({"--server": "host"}, 10, "HOST:PORT"), ({"--server": ":8443"}, 10, "HOST:PORT"),
    ({"--server": "host:99999"}, 10, "host name or IP address"), ({"--server": "host:²"}, 10, "HOST:PORT"),
    ({"--server": "ho st:8443"}, 10, "host name or IP address"),
    ({"--role": "evaluator"}, 10, "the invitation is for another role"),
    ({"--invite": "nonsense"}, 90, "invit"), ({"--cohort": "."}, 10, "no prepared cohort"),
    ({"--cohort": "/does/not/exist"}, 2, "does not exist"),
])  # fmt: skip
def test_errors_of_site_init_and_no_key_is_made(
    consortium: Consortium, change: dict[str, str], code: int, words: str
) -> None:
    token = consortium.run("server", "invite", consortium.hub, "site-01").out.split()[0]
    cohort = str(consortium.study.config("site-01").cohort)
    given = {"--invite": token, "--server": "localhost:9443", "--cohort": cohort} | change
    done = consortium.run("site", "init", consortium.site("site-01"), *(w for pair in given.items() for w in pair))
    assert (done.code, words in done.err) == (code, True), done
    assert "Traceback" not in done.err and token not in done.err
    assert not list(consortium.site("site-01").rglob("*.key")), "no key for what was refused"


def test_site_init_again_with_the_same_invitation_keeps_keys_and_policy(consortium: Consortium) -> None:
    first = consortium.join("site-01")
    policy = SiteHome.open(consortium.site("site-01")).policy_file
    policy.write_text(policy.read_text().replace("epsilon_limit: 8.0", "epsilon_limit: 3.0"))
    token = (consortium.site("site-01") / "identity" / "invite")
    again = consortium.run("site", "init", consortium.site("site-01"), "--invite", token, "--server", "localhost:9443",
                           "--cohort", consortium.study.config("site-01").cohort)  # fmt: skip
    assert again.code == 0, again.err
    assert SiteIdentity.open(consortium.site("site-01") / "identity").words(six_words) == first
    assert "epsilon_limit: 3.0" in policy.read_text()


@pytest.mark.parametrize("command", ["review", "approve", "decline"])
def test_a_study_that_was_not_proposed_is_an_error(consortium: Consortium, command: str) -> None:
    consortium.enrol("site-01")
    sure = ["--yes"] if command == "approve" else []
    done = consortium.run("site", command, consortium.site("site-01"), "other", *sure)
    assert done.code == ConfigError.exit_code and "no study other is proposed" in done.err, done
    assert "mammofed site review" in done.err


def test_a_person_who_says_no_to_the_question_has_approved_nothing(
    consortium: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    import io

    consortium.enrol_all()
    consortium.propose()
    consortium.deliver("site-01")
    monkeypatch.setattr(sys, "stdin", io.StringIO("n\n"))
    done = consortium.run("site", "approve", consortium.site("site-01"), "unit")
    assert done.code == 1 and "is approved" not in done.out
    assert SiteHome.open(consortium.site("site-01")).trusted_coordinator() is None


def test_what_the_trainer_would_refuse_is_said_at_the_approval(consortium: Consortium) -> None:
    consortium.enrol_all()
    consortium.propose()
    consortium.deliver("site-01")
    policy = SiteHome.open(consortium.site("site-01")).policy_file
    policy.write_text(policy.read_text().replace("delta_limit: 1.0e-5", "delta_limit: 1.0e-9"))
    done = consortium.run("site", "approve", consortium.site("site-01"), "unit", "--yes")
    assert done.code == 0 and "the trainer would refuse it: its delta is greater than this site allows" in done.err
    assert "serves it once that is put right" in done.out


def test_an_exchanged_coordinator_is_said_by_status_and_refused_by_the_rest(consortium: Consortium) -> None:
    consortium.enrol_all()
    consortium.propose()
    consortium.deliver("site-01")
    home = consortium.site("site-01")
    assert consortium.run("site", "approve", home, "unit", "--yes").code == 0
    offered = home / "courier" / "coordinator.json"
    write_private(offered, offered.read_bytes().replace(b'"hub"', b'"bub"'))
    for command in (("review",), ("approve", "--yes")):
        done = consortium.run("site", command[0], home, *(["unit"] if command[0] == "approve" else []), *command[1:])
        assert done.code == SignatureError.exit_code and "not the one that this site accepted" in done.err
    done = consortium.run("site", "status", home)
    assert done.code == 0 and "not the one that this site accepted" in done.out
    done = consortium.run("site", "decline", home, "unit")
    assert done.code == 0 and "is declined" in done.out
    assert list((home / "trainer" / "protocols").iterdir()) == []


def test_a_proposal_of_sites_that_are_not_there_and_one_that_changed(consortium: Consortium) -> None:
    done = consortium.propose()
    assert done.code == ProtocolError.exit_code and "site-01, site-02" in done.err and "server invite" in done.err
    consortium.enrol_all()
    assert consortium.propose().code == 0 == consortium.propose().code
    consortium.study = replace(
        consortium.study, protocol=Protocol.create(consortium.study.protocol.model_dump(mode="json") | {"seed": 9})
    )
    done = consortium.propose()
    assert done.code == ProtocolError.exit_code and "give the new protocol another name" in done.err


def test_start_stop_resume_in_their_order_and_out_of_it(consortium: Consortium) -> None:
    consortium.enrol_all()
    consortium.propose()
    study = StudyFolder(CoordinatorHome.open(consortium.hub).study("unit"))
    for command, code, words, wish in (
        ("stop", 10, "does not run", Wish.PROPOSED), ("resume", 10, "server start", Wish.PROPOSED),
        ("start", 0, "unit begins", Wish.RUNNING), ("start", 10, "running already", Wish.RUNNING),
        ("stop", 0, "server resume", Wish.STOPPED), ("start", 10, "server resume", Wish.STOPPED),
        ("resume", 0, "goes on", Wish.RUNNING),
    ):  # fmt: skip
        done = consortium.run("server", command, consortium.hub, "unit")
        assert done.code == code and words in done.out + done.err, (command, done)
        assert study.wanted().wish is wish


def test_a_study_that_begins_brings_the_page_where_it_is_asked_for(
    consortium: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    consortium.enrol_all()
    consortium.propose()
    served: list[object] = []
    monkeypatch.setattr("server.monitor.cli.monitor.callback", lambda **options: served.append(options))
    assert consortium.run("server", "start", consortium.hub, "unit", "--monitor").code == 0
    assert consortium.run("server", "start", consortium.hub, "unit", "--monitor").code == 10  # no page: it runs already
    consortium.run("server", "stop", consortium.hub, "unit")
    assert consortium.run("server", "resume", consortium.hub, "unit").code == 0
    (options,) = served
    assert isinstance(options, dict) and options["target"] == str(consortium.hub)
    assert (options["host"], options["port"], options["terminal"]) == ("127.0.0.1", 8787, False)
    assert (options["study"], options["no_open"]) == ("unit", False)


# --- what a coordinator sees ---


def test_what_a_site_says_of_itself_gives_no_orders_to_the_operators_terminal(consortium: Consortium) -> None:
    consortium.enrol("site-01")
    home = CoordinatorHome.open(consortium.hub)
    roll = Roll(home.run / FILE)
    beat = BeatRequest(time=1.0, release="0.1.0", trainer=TrainerState(up=True, device="[/red] [link=http://x]GPU[/]"))
    roll.seen(Member("site-01", Role.SITE), beat, offered=())
    roll.write()
    with home.audit_log():  # as the daemon does: what was said to one that is gone does not count
        done = consortium.run("server", "status", consortium.hub)
    assert done.code == 0 and "[/red] [link=http://x]GPU[/]" in done.out


def test_status_goes_on_beside_damaged_files_and_does_not_take_the_daemons_log(consortium: Consortium) -> None:
    consortium.enrol_all()
    consortium.propose()
    home = CoordinatorHome.open(consortium.hub)
    for path in (home.run / FILE, home.run / "processes.json", home.study("unit") / "wanted.json"):
        write_private(path, b"{[/red]")
    done = consortium.run("server", "status", consortium.hub)
    assert done.code == 0 and "damaged" in done.out and "site-01" in done.out, done
    with home.audit_log():
        assert json.loads(consortium.run("server", "status", consortium.hub, "--json").out)["daemon"] is True
    size = (home.folder / "audit.jsonl").stat().st_size
    assert json.loads(consortium.run("server", "status", consortium.hub, "--json").out)["daemon"] is False
    assert (home.folder / "audit.jsonl").stat().st_size == size


def test_status_tells_who_is_here_and_what_each_has_approved(consortium: Consortium) -> None:
    consortium.enrol_all()
    consortium.propose()
    home, sha256 = CoordinatorHome.open(consortium.hub), consortium.study.protocol.sha256
    roll = Roll(home.run / FILE)
    beat = BeatRequest(time=1.0, release="0.1.0", trainer=TrainerState(up=False), approved=(sha256, "0" * 64))
    roll.seen(Member("site-01", Role.SITE), beat, offered=(sha256,))
    roll.write()
    from server.deploy.status import status_of

    now = roll.present()["site-01"].time
    for later, here in ((1.0, "yes"), (600.0, "10 min ago"), (36000.0, "10 h ago")):
        with home.audit_log():
            members = {m["site"]: m for m in status_of(home, now=now + later)["members"]}
        assert (members["site-01"]["here"], members["site-01"]["approved"]) == (here, ["unit"])
        assert members["site-01"]["trainer"] == "down" and members["site-02"]["here"] == "not since the daemon began"
    assert {m["here"] for m in status_of(home, now=now)["members"]} == {""}, "no daemon, nobody here"
