"""A whole study whose server, evaluator, trainer and couriers each run as their unit files say, from invitation on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import save_file

from client.deploy.home import SiteHome
from client.trainer.client import listens
from shared_model.fingerprint import six_words
from shared_model.messages import weights_sha256
from simulations.ports import held_ports
from tests.confined import FIRST_ID, Accounts, Machine, why_not

ROOT = Path(__file__).resolve().parents[2]
SITE_UNITS, HUB_UNITS = ROOT / "client" / "deploy" / "units", ROOT / "server" / "deploy" / "units"
TRAINER, COURIER = SITE_UNITS / "mammofed-trainer.service", SITE_UNITS / "mammofed-courier.service"
SERVER, EVALUATOR = HUB_UNITS / "mammofed-server.service", HUB_UNITS / "mammofed-evaluator.service"
EVALUATOR_COURIER = HUB_UNITS / "mammofed-evaluator-courier.service"
PHASES = [{"name": "all", "rounds": 1, "objective": "fusion", "learning_rate": 0.05, "encoder_rate": 1.0}]
BIN = Path(sys.executable).parent
WAIT_S = 600.0  # for each step; alone on two cores the whole takes about a minute
WHY_NOT = why_not()

pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)


class Machines:
    """A hospital's machine and a coordinator's, with services that end with this object."""

    def __init__(self, root: Path, ports: Sequence[int]) -> None:
        self.root, self._running = root, dict[str, subprocess.Popen[bytes]]()
        self.ports = [str(port) for port in ports]  # the gateway's, the enrolment's, the SuperLink's
        moved = {"/var/lib/mammofed": str(root / "site/home"), "/opt/mammofed/bin": str(BIN),
                 "/var/lib/mammofed-server": str(root / "hub/home"),
                 "/var/lib/mammofed-evaluator": str(root / "hub/evaluator")}  # fmt: skip
        self.site = Machine(root / "site", Accounts.read(SITE_UNITS / "mammofed-site.sysusers.conf"), moved)
        self.hub = Machine(root / "hub", Accounts.read(HUB_UNITS / "mammofed-coordinator.sysusers.conf",
                                                       first=FIRST_ID + 100), moved)  # fmt: skip
        for machine in (self.site, self.hub):
            machine.prepare()
            machine.root.chmod(0o755)

    def lay_out(self) -> None:
        """What an administrator runs after `init`: systemd-tmpfiles --create."""
        self.site.lay_out(SITE_UNITS / "mammofed-site.tmpfiles.conf")
        self.hub.lay_out(HUB_UNITS / "mammofed-coordinator.tmpfiles.conf")

    def start(self, machine: Machine, unit: Path) -> None:
        with (self.root / f"{unit.stem}.log").open("wb") as log:
            self._running[unit.stem] = subprocess.Popen(
                machine.command(unit), env=environment(), start_new_session=True, stdout=log, stderr=log
            )

    def until(self, true: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + WAIT_S
        while not true():
            ended = [name for name, process in self._running.items() if process.poll() is not None]
            if ended or time.monotonic() > deadline:
                logs = "\n".join(f"--- {path}\n{path.read_text(errors='replace')[-1500:]}"
                                 for path in sorted(self.root.rglob("*.log")))  # fmt: skip
                raise AssertionError(f"{what}: not so; ended: {ended}\n{logs}")
            time.sleep(0.1)

    def close(self) -> None:
        for process in self._running.values():
            process.send_signal(signal.SIGTERM)
        for process in self._running.values():
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        shutil.rmtree(self.root)


def environment() -> dict[str, str]:
    return {"PATH": f"{BIN}:{os.defpath}", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def command(words: list[str]) -> str:
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def machines() -> Iterator[Machines]:
    root = Path(tempfile.mkdtemp(prefix="mf-", dir="/var/lib"))
    root.chmod(0o755)
    with held_ports(3) as ports:
        there = Machines(root, ports)
        try:
            yield there
        finally:
            there.close()


def owners(folder: Path) -> set[int]:
    return {path.stat().st_uid for path in [folder, *folder.rglob("*")]}


def own(folder: Path, user: int, group: int) -> None:
    """What an importer leaves: its user, the folder's group, its umask."""
    for there in [folder, *folder.rglob("*")]:
        os.chown(there, user, group)
        there.chmod(0o2750 if there.is_dir() else 0o640)


@pytest.mark.slow
def test_a_study_runs_with_each_role_behind_its_walls(
    machines: Machines, study_maker: Callable[..., Any], tmp_path: Path
) -> None:
    program, hub = str(BIN / "mammofed"), machines.root / "hub/home"
    homes = {"site-01": SiteHome(machines.root / "site/home"), "evaluator": SiteHome(machines.root / "hub/evaluator")}
    units = {"site-01": (machines.site, TRAINER, COURIER), "evaluator": (machines.hub, EVALUATOR, EVALUATOR_COURIER)}
    roles = {"site-01": "site", "evaluator": "evaluator"}
    accounts, hub_accounts = machines.site.accounts, machines.hub.accounts
    own_cohort = {"site-01": (accounts.users["mammofed-importer"], accounts.groups["mammofed-cohort"]),
                  "evaluator": (0, hub_accounts.groups["mammofed-evaluator"])}  # fmt: skip

    def server(*words: str) -> str:
        """A command of the coordinator, as its user."""
        return command(machines.hub.command(SERVER, [program, "server", words[0], str(hub), *words[1:]]))

    first = study_maker(tmp_path / "first", sites=1, private=True)
    # So many held-out women that both parts have some with cancer, however the evaluator's own salt divides them.
    study = study_maker(tmp_path / "study", sites=1, private=True, training__phases=PHASES, evaluation__bootstrap=0,
                        held_out=120, federation__deadline_s=WAIT_S,
                        initial_weights__sha256=weights_sha256(first.arrays))  # fmt: skip
    port, enrol_port, link_port = machines.ports
    machines.lay_out()
    command([program, "server", "init", str(hub), "--name", "hub", "--host", "localhost", "--listen", "127.0.0.1",
             "--port", port, "--enrol-port", enrol_port, "--link-port", link_port])  # fmt: skip
    machines.lay_out()
    machines.start(machines.hub, SERVER)
    for name, home in homes.items():
        token = server("invite", name, "--role", roles[name]).splitlines()[0]
        cohort = home.folder / "cohorts" / "cohort"
        shutil.copytree(study.config(name).cohort, cohort)
        own(cohort, *own_cohort[name])
        command([program, "site", "init", str(home.folder), "--invite", token, "--server", f"localhost:{port}",
                 "--enrol-port", enrol_port, "--cohort", str(cohort), "--role", roles[name]])  # fmt: skip
        machines.lay_out()
        for unit in units[name][1:]:
            machines.start(units[name][0], unit)
    for name, home in homes.items():
        machines.until(lambda name=name: name in server("enrol"), f"{name} asks for its certificate")  # type: ignore[misc]
        words = home.identity().words(six_words)
        server("enrol", name, "--certificate", words["certificate"], "--node", words["node"])

    # Commands of the coordinator run as its user, behind its walls: it proposes what lies in its own home.
    (hub / "protocol.json").write_text(study.protocol.to_json())
    save_file(dict(study.arrays), hub / "initial.safetensors")
    for name in ("protocol.json", "initial.safetensors"):
        os.chown(hub / name, *[hub_accounts.users["mammofed-server"]] * 2)
    machines.until(lambda: all((home.courier / "coordinator.json").exists() for home in homes.values()), "certificates")
    server("propose", str(hub / "protocol.json"), "--weights", str(hub / "initial.safetensors"))
    for name, home in homes.items():
        machines.until(lambda home=home: any(home.inbox.glob("unit-*.json")), f"the proposal is at {name}")  # type: ignore[misc]
        command([program, "site", "approve", str(home.folder), "unit", "--yes"])  # the administrator, as root
    machines.until(lambda: all(listens(home.socket) for home in homes.values()), "both trainers serve")

    def approved() -> list[str]:
        """What the coordinator hears of the trainers, through couriers and tunnels."""
        return [name for member in json.loads(server("status", "--json"))["members"] for name in member["approved"]]

    machines.until(lambda: approved() == ["unit", "unit"], "the coordinator hears of both approvals")
    server("start", "unit")
    summary = hub / "studies" / "unit" / "summary.json"
    machines.until(summary.exists, "the study has ended")
    assert json.loads(summary.read_text())["status"] == "COMPLETE"

    users = accounts.users | hub_accounts.users
    for name, trainer, courier in (("site-01", "mammofed-trainer", "mammofed-courier"),
                                   ("evaluator", "mammofed-evaluator", "mammofed-evaluator-courier")):  # fmt: skip
        assert owners(homes[name].trainer) == {users[trainer]}
        assert owners(homes[name].courier) == owners(homes[name].folder / "identity") == {users[courier]}
        kinds = [json.loads(line)["kind"] for line in (homes[name].state / "audit.jsonl").read_text().splitlines()]
        assert ("round_trained" in kinds) == (name == "site-01") and "message_refused" not in kinds
    assert owners(hub) == {users["mammofed-server"]}
