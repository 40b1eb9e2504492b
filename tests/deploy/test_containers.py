"""Dockerfiles and compose files, which are not built here: what they name exists, and nothing in them is careless."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from shared_model.bundle.make import copy_papers

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILES = sorted(ROOT.glob("*/deploy/Dockerfile.*"))
COMPOSE = sorted(ROOT.glob("*/deploy/compose*.yaml"))
SECRET = re.compile(r"password|token|secret|api_?key|private_?key|\.pem\b|\.key\b", re.IGNORECASE)


def instructions(path: Path) -> list[tuple[str, str]]:
    """(instruction, rest) of a Dockerfile; comments left out and lines joined."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def services(path: Path) -> dict[str, Any]:
    found = yaml.safe_load(path.read_text())["services"]
    assert isinstance(found, dict)
    return found


def ids(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_there_is_one_for_each_side_and_each_device() -> None:
    assert {ids(path) for path in DOCKERFILES} == {f"{room}/deploy/Dockerfile.{kind}" for room in ("client", "server")
                                                   for kind in ("cpu", "cuda")}  # fmt: skip
    assert {ids(path) for path in COMPOSE} == {"client/deploy/compose.cuda.yaml", "client/deploy/compose.yaml",
                                               "server/deploy/compose.yaml"}  # fmt: skip


@pytest.mark.parametrize("path", DOCKERFILES, ids=ids)
def test_a_dockerfile_pins_its_base_and_runs_as_nobody_special(path: Path) -> None:
    found = instructions(path)
    bases = [rest for word, rest in found if word == "ARG" and rest.startswith("PYTHON_IMAGE=")]
    assert bases == ["PYTHON_IMAGE=python:3.11.14-slim-bookworm"], "a version to the last digit, never `latest`"
    assert {rest.split()[0] for word, rest in found if word == "FROM"} == {"${PYTHON_IMAGE}"}
    users = [rest for word, rest in found if word == "USER"]
    assert users == ["10001:10001"], "a number, which Kubernetes can check"
    after = [word for word, _ in found[[word for word, _ in found].index("USER") :]]
    assert not {"RUN", "COPY", "ADD"} & set(after)


@pytest.mark.parametrize("path", DOCKERFILES, ids=ids)
def test_a_dockerfile_fetches_nothing_and_holds_no_secret(path: Path) -> None:
    for word, rest in instructions(path):
        assert word != "ADD"
        assert not re.search(r"https?://|curl|wget|apt-get|pip install|git clone", rest), rest
        assert word not in ("ENV", "ARG", "COPY", "LABEL") or not SECRET.search(rest), rest
    copied = [rest for word, rest in instructions(path) if word == "COPY"]
    assert copied == ["--from=build /opt/mammofed /opt/mammofed"]


@pytest.mark.parametrize("path", DOCKERFILES, ids=ids)
def test_what_a_dockerfile_runs_of_the_bundle_is_in_it(path: Path) -> None:
    (run,) = [rest for word, rest in instructions(path) if word == "RUN" and "bind" in rest]
    assert "sh /bundle/install.sh /opt/mammofed" in run and "source=.,target=/bundle" in run
    assert (ROOT / "shared_model/bundle/install.sh.j2").exists()
    code = re.search(r"python -c '([^']*)'", run)
    assert code is not None
    compile(code[1], ids(path), "exec")
    assert ("assert not torch.version.cuda" in code[1]) == path.name.endswith(".cpu")


def command_of(words: list[str]) -> click.Command:
    """The command that an argument list of `mammofed` calls."""
    from mammofed import cli

    command: click.Command = cli
    for word in words:
        if not isinstance(command, click.Group):
            break
        found = command.get_command(click.Context(command), word)
        assert found is not None, f"there is no command {word} in {words}"
        command = found
    return command


def listed(text: str) -> list[str]:
    return re.findall(r'"([^"]*)"', text)


@pytest.mark.parametrize("path", DOCKERFILES, ids=ids)
def test_a_dockerfile_starts_commands_that_exist(path: Path) -> None:
    found = dict(instructions(path))
    assert listed(found["ENTRYPOINT"]) == ["mammofed"]
    assert command_of(listed(found["CMD"])).name in ("serve", "join")
    checked = listed(found["HEALTHCHECK"])
    assert checked[0] == "mammofed" and command_of(checked[1:]).name == "doctor"


@pytest.mark.parametrize("path", COMPOSE, ids=ids)
def test_a_compose_file_builds_from_what_a_bundle_holds(path: Path, tmp_path: Path) -> None:
    copy_papers(ROOT, tmp_path, "all")
    room = path.relative_to(ROOT).parts[0]
    assert (tmp_path / "deploy" / room / path.name).exists()
    for service in services(path).values():
        context = (tmp_path / "deploy" / room / service["build"]["context"]).resolve()
        assert context == tmp_path.resolve() and (context / service["build"]["dockerfile"]).is_file()
        assert service["build"]["network"] == "none"
        assert re.fullmatch(r"mammofed-(site|server):(cpu|cuda)", service["image"])


@pytest.mark.parametrize("path", [path for path in COMPOSE if "cuda" not in path.name], ids=ids)
def test_a_compose_file_gives_no_more_than_is_needed(path: Path) -> None:
    text = path.read_text()
    assert "docker.sock" not in text and not re.search(r"(password|secret|token)\s*[:=]", text, re.IGNORECASE)
    for name, service in services(path).items():
        assert service["read_only"] is True and service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"] and service["user"] == "10001:10001"
        assert not {"privileged", "cap_add", "pid", "ipc", "devices"} & service.keys()
        assert service["restart"] == "unless-stopped" and service["pids_limit"]
        command = command_of(service["command"])
        command.make_context("x", [re.sub(r"\$\{.*\}", "/home", w) for w in service["command"][2:]])


def test_the_trainer_s_container_has_no_network_and_no_key_of_the_courier() -> None:
    trainer, courier = (services(ROOT / "client/deploy/compose.yaml")[name] for name in ("trainer", "courier"))
    assert trainer["network_mode"] == "none" and "networks" not in trainer and "ports" not in trainer
    assert courier["networks"] == ["outside"] and "ports" not in courier, "nothing listens at a site"

    def inside(service: dict[str, Any]) -> dict[str, bool]:
        """Mounted place under the home -> whether it can be written."""
        found = {}
        for volume in service["volumes"]:
            plain = re.sub(r"\$\{MAMMOFED_(\w+)[^}]*\}", r"\1", volume)
            _, place, mode = [*plain.split(":"), ""][:3]
            found[place] = mode != "ro"
        return found

    assert inside(trainer) == {
        "HOME/policy.yaml": False, "HOME/trainer": True, "HOME/trainer/protocols": False, "HOME/run": True,
        "COHORT": False,
    }  # fmt: skip
    assert inside(courier) == {"HOME/policy.yaml": False, "HOME/identity": True, "HOME/courier": True, "HOME/run": True}


def test_a_home_is_laid_out_as_the_mounts_say(tmp_path: Path) -> None:
    from client.deploy.home import SiteHome

    home = SiteHome(tmp_path)
    assert (home.policy_file, home.trainer, home.courier) == (
        tmp_path / "policy.yaml", tmp_path / "trainer", tmp_path / "courier")  # fmt: skip
    assert home.state.is_relative_to(home.trainer) and home.protocols.is_relative_to(home.trainer)
    assert home.inbox.is_relative_to(home.courier) and home.socket.parent == tmp_path.resolve() / "run"


def test_the_coordinator_opens_its_two_doors_and_nothing_else() -> None:
    from server.deploy.home import CoordinatorFile

    (server,) = services(ROOT / "server/deploy/compose.yaml").values()
    settings = CoordinatorFile(name="hub", title="Hub", hosts=("x",))
    assert server["ports"] == [f"{port}:{port}" for port in (settings.port, settings.enrol_port)]
    assert settings.link_port not in (settings.port, settings.enrol_port)


def test_the_installer_is_a_shell_script_that_a_shell_accepts(tmp_path: Path) -> None:
    from shared_model.bundle.make import write_installer

    write_installer(tmp_path, "0.1.0")
    done = subprocess.run(["sh", "-n", str(tmp_path / "install.sh")], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "{{" not in (tmp_path / "install.sh").read_text()
