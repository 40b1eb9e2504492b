"""SuperLink of a coordinator: what is told to it, what its answers mean; and once the real one, from home to node."""

from __future__ import annotations

import json
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.common.config import parse_config_args

from server.deploy import link as link_module
from server.deploy.home import CoordinatorFile, CoordinatorHome
from server.deploy.link import Link
from shared_model import flower_app
from shared_model.errors import ConfigError, RoundError
from shared_model.supervisor import Supervisor
from simulations.ports import held_ports
from tests.enrolled import HANG_S
from tests.flower_processes import PATIENCE_S

NAME = "hub"


@pytest.fixture
def home(tmp_path: Path) -> Iterator[CoordinatorHome]:
    with held_ports(1) as (port,):
        settings = CoordinatorFile(name=NAME, title="Hub", hosts=("localhost",), port=1, enrol_port=2, link_port=port)
        yield CoordinatorHome.create(tmp_path / "a hub's \"home\"", settings)


def node_key() -> bytes:
    key = ec.generate_private_key(ec.SECP384R1()).public_key()
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


class Answers(Link):
    """Flower answers what it is told to."""

    def __init__(self, home: CoordinatorHome, *answers: Any) -> None:
        super().__init__(home)
        self.answers, self.asked = list(answers), list[tuple[str, ...]]()

    def _flwr(self, *arguments: str) -> dict[str, Any]:
        self.asked.append(arguments)
        found = self.answers.pop(0)
        if isinstance(found, Exception):
            raise found
        return found


def test_superlink_listens_on_the_loopback_alone_with_a_database_and_node_authentication(
    home: CoordinatorHome,
) -> None:
    link = Link(home)
    link.prepare()
    superlink, superexec = link.services()
    line = list(superlink.command)
    assert line[line.index("--host") + 1] == "127.0.0.1"
    assert line[line.index("--isolation") + 1] == "process"
    assert "--enable-supernode-auth" in line and "--insecure" not in line
    assert Path(line[line.index("--database") + 1]).parent == home.link
    assert "--disable-runtime-dependency-installation" in line
    assert "--root-certificates" in superexec.command and "--insecure" not in superexec.command
    for service in (superlink, superexec):
        assert service.folder.stat().st_mode & 0o777 == 0o700 and not list(service.folder.iterdir())
    for name in ("link.key", "link.pem"):
        assert (home.link / name).stat().st_mode & 0o777 == 0o600


def test_preparing_again_keeps_the_key_and_changes_nothing(home: CoordinatorHome) -> None:
    link = Link(home)
    link.prepare()

    def content() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in sorted(home.link.rglob("*")) if path.is_file()}

    before = content()
    Link(home).prepare()
    assert content() == before


def test_flowers_processes_are_told_nothing_of_the_shell_they_were_started_from(
    home: CoordinatorHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MAMMOFED_PROXY", "HTTPS_PROXY", "PYTHONPATH", "LD_PRELOAD", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "http://user:secret@proxy:3128")
    there = Link(home).environment()
    assert "secret" not in json.dumps(there)
    assert there["FLWR_HOME"] == str(home.link / "home") and there["FLWR_TELEMETRY_ENABLED"] == "0"
    assert there["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"


def test_the_run_configuration_is_what_flower_and_the_server_app_read(home: CoordinatorHome, tmp_path: Path) -> None:
    link = Answers(home, {"success": True, "run-id": "18446744073709551615"})
    link.prepare()
    assert link.submit(home.study("pilot"), patience_s=120.0) == 2**64 - 1
    (asked,) = link.asked
    read = parse_config_args([asked[asked.index("--run-config") + 1]])
    assert read == {"study": "pilot", "patience-seconds": 120.0}, "every site is told it: no path of the coordinator's"
    manifest = tomllib.loads((home.link / "app" / "pyproject.toml").read_text())
    assert set(manifest["tool"]["flwr"]["app"]["config"]) >= set(read), "Flower refuses a key that the app has not"
    components = manifest["tool"]["flwr"]["app"]["components"]
    assert components == {"serverapp": "server.app:app", "clientapp": "client.app:app"}
    assert [path.name for path in (home.link / "app").iterdir()] == ["pyproject.toml"], "no code travels"


@pytest.mark.parametrize("answer", [{}, {"run-id": None}, {"run-id": "x"}, {"runs": []}, {"runs": [{}, {}]},
                                    {"runs": [{"status": "running"}]}, {"nodes": [{}]}, {"node-id": "-"}])  # fmt: skip
def test_an_answer_of_another_form_is_an_error_in_words(home: CoordinatorHome, answer: dict[str, Any]) -> None:
    for ask in (lambda link: link.submit(Path("/x"), patience_s=1.0), lambda link: link.run_status(7),
                lambda link: link.node_ids(), lambda link: link.register("north", node_key())):  # fmt: skip
        with pytest.raises(RoundError):
            ask(Answers(home, answer))


def test_a_run_that_superlink_has_forgotten_has_ended(home: CoordinatorHome) -> None:
    """Its database was lost: the study goes on in a new run, and does not ask for the old one for ever."""
    forgot = RoundError("refused", found="Displaying information for run ID 7...\n\n[code: 16] Run ID not found.")
    assert Answers(home, forgot).run_status(7).ended
    with pytest.raises(RoundError):
        Answers(home, RoundError("refused", found="[code: 1] busy")).run_status(7)


def test_a_run_that_has_ended_is_not_stopped_again(home: CoordinatorHome) -> None:
    ended = {"runs": [{"status": "finished:failed", "status-details": "No heartbeat"}]}
    link = Answers(home, ended)
    link.stop(7)
    assert [asked[0] for asked in link.asked] == ["ls"]
    link = Answers(home, {"runs": [{"status": "pending", "status-details": ""}]}, {"success": True})
    link.stop(7)
    assert [asked[0] for asked in link.asked] == ["ls", "stop"]


def fake_flwr(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "flwr"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setattr(link_module, "flower_command", lambda name: str(folder / name))


def written(path: Path) -> bool:
    """Whether a line is there, to its end."""
    return path.exists() and path.read_text().endswith("\n")


@pytest.mark.parametrize(("script", "words"), [
    ("echo the reason >&2; exit 1", "the reason"),
    ("echo '{\"success\": false, \"error\": \"no\"}'", "no"),
    ("echo '{\"success\": false}'; exit 3", "success"),
    ("exit 5", "found: 5"),
])  # fmt: skip
def test_what_flower_says_of_a_refusal_is_in_the_error(
    home: CoordinatorHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, words: str
) -> None:
    link = Link(home)
    link.prepare()
    fake_flwr(tmp_path, script, monkeypatch)
    with pytest.raises(RoundError, match="SuperLink refuses `flwr supernode`") as caught:
        link.node_ids()
    assert words in str(caught.value)


def test_a_command_that_hangs_is_ended(
    home: CoordinatorHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = Link(home)
    link.prepare()
    fake_flwr(tmp_path, "echo $$ > '" + str(tmp_path / "pid") + "'; exec sleep 600", monkeypatch)
    monkeypatch.setattr(link_module, "COMMAND_S", 0.5)
    while not written(tmp_path / "pid"):  # on a busy machine it may be ended before it has begun
        with pytest.raises(RoundError, match="does not answer"):
            link.node_ids()
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists()


def test_who_is_told_to_end_does_not_wait_for_a_command(
    home: CoordinatorHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """systemd gives the daemon so many seconds; a SuperLink that hangs must not use them up."""
    link = Link(home)
    link.prepare()
    fake_flwr(tmp_path, "echo $$ > '" + str(tmp_path / "pid") + "'; exec sleep 600", monkeypatch)
    said: list[str] = []

    def ask() -> None:
        with pytest.raises(RoundError) as caught:
            link.node_ids()
        said.append(str(caught.value))

    thread = threading.Thread(target=ask)
    thread.start()
    while not written(tmp_path / "pid"):
        thread.join(0.01)
    link.end()
    thread.join(HANG_S)
    assert not thread.is_alive() and "is ending" in said[0]
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists()
    with pytest.raises(RoundError, match="is ending"):
        link.node_ids()  # and nothing is begun any more


def test_a_command_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(flower_app.sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"`flower-superlink` is not installed.*to do: install mammofed again"):
        flower_app.flower_command("flower-superlink")


@pytest.mark.slow
def test_the_real_superlink_is_as_the_stand_in_says(home: CoordinatorHome) -> None:
    """Keys are taken once for ever; who was shut out stays listed, is no node of ours, and cannot be shut out twice."""
    link = Link(home)
    link.prepare()
    with Supervisor() as supervisor:
        supervisor.add(link.services()[0])
        log = home.link / "logs" / "superlink.log"
        deadline = threading.Event()
        for _ in range(int(PATIENCE_S / 0.2)):
            if log.exists() and b"Application startup complete" in log.read_bytes():
                break
            deadline.wait(0.2)
        key = node_key()
        number = link.register("north", key)
        assert link.node_ids() == {number}
        with pytest.raises(RoundError, match="already in use"):
            link.register("north", key)
        link.unregister(number)
        assert link.node_ids() == set()
        link.unregister(number)  # again is fine
        with pytest.raises(RoundError, match="refuses `flwr supernode`"):
            link._flwr("supernode", "unregister", str(number), "coordinator")
        with pytest.raises(RoundError, match="already in use"):
            link.register("north", key)
        assert link.run_status(7).ended, "one that it does not know, say after its database was lost"
        listed = link._flwr("supernode", "ls", "coordinator")["nodes"]
        assert [node["status"] for node in listed] == [link_module.UNREGISTERED]
    assert list((home.link / "empty").iterdir()) == []
