"""Every unit file that is shipped: systemd understands it, each wall is there, its command, users and groups exist."""

from __future__ import annotations

import os
import shlex
import shutil
import stat
import subprocess
from collections.abc import Mapping
from pathlib import Path

import click
import pytest

from mammofed import cli
from tests.confined import APPLIED, SYSTEMD_ONLY, Accounts, Machine, service_of

ROOT = Path(__file__).resolve().parents[1]
SITE, COORDINATOR = ROOT / "client" / "deploy" / "units", ROOT / "server" / "deploy" / "units"
UNITS = sorted([*SITE.glob("*.service"), *COORDINATOR.glob("*.service")])
ACCOUNTS = {SITE: "mammofed-site", COORDINATOR: "mammofed-coordinator"}
PATIENTS = {"mammofed-trainer", "mammofed-evaluator"}  # who holds patients has no network at all
EVERYBODY = {
    "NoNewPrivileges": ["yes"], "CapabilityBoundingSet": [""], "AmbientCapabilities": [""], "ProtectSystem": ["strict"],
    "ProtectHome": ["yes"], "PrivateTmp": ["yes"], "PrivateDevices": ["yes"], "ProtectProc": ["invisible"],
    "ProtectKernelTunables": ["yes"], "ProtectKernelModules": ["yes"], "ProtectKernelLogs": ["yes"],
    "ProtectControlGroups": ["yes"], "ProtectClock": ["yes"], "ProtectHostname": ["yes"], "RestrictNamespaces": ["yes"],
    "RestrictRealtime": ["yes"], "RestrictSUIDSGID": ["yes"], "LockPersonality": ["yes"], "RemoveIPC": ["yes"],
    "KeyringMode": ["private"], "SystemCallArchitectures": ["native"], "SystemCallFilter": ["@system-service"],
    "LimitCORE": ["0"],
}  # fmt: skip


def test_there_are_units_for_each_role() -> None:
    names = {folder: {unit.stem.removeprefix("mammofed-") for unit in UNITS if unit.parent == folder}
             for folder in ACCOUNTS}  # fmt: skip
    assert names == {SITE: {"courier", "importer", "trainer"},
                     COORDINATOR: {"evaluator", "evaluator-courier", "server"}}  # fmt: skip


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_each_unit_is_hardened_line_by_line(unit: Path) -> None:
    service = service_of(unit)
    assert not set(service) - APPLIED - SYSTEMD_ONLY
    assert {name: service.get(name) for name in EVERYBODY} == EVERYBODY
    assert service["User"] == service["Group"] == [unit.stem]
    assert service["UMask"] == ["0027" if unit.stem == "mammofed-importer" else "0077"]
    alone = {"PrivateNetwork": ["yes"], "RestrictAddressFamilies": ["AF_UNIX"], "IPAddressDeny": ["any"]}
    assert ({name: service.get(name) for name in alone} == alone) == (unit.stem in PATIENTS)
    families = {family for value in service["RestrictAddressFamilies"] for family in value.split()}
    assert families <= {"AF_UNIX", "AF_INET", "AF_INET6"}


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_its_command_exists_with_these_options(unit: Path) -> None:
    program, *words = shlex.split(service_of(unit)["ExecStart"][0])
    assert program == "/opt/mammofed/bin/mammofed"
    command: click.Command = cli
    while isinstance(command, click.Group):
        found = command.get_command(click.Context(command), words.pop(0))
        assert found is not None
        command = found
    parser = command.make_parser(click.Context(command))
    options, rest, _ = parser.parse_args(list(words))
    assert len(rest) == 0
    assert set(options) <= {parameter.name for parameter in command.params}


@pytest.mark.parametrize("folder", ACCOUNTS, ids=ACCOUNTS.values())
def test_users_groups_and_folders_fit_together(folder: Path) -> None:
    accounts = Accounts.read(folder / f"{ACCOUNTS[folder]}.sysusers.conf")
    for unit in folder.glob("*.service"):
        service = service_of(unit)
        assert service["User"][0] in accounts.users
        groups = [name for value in service.get("SupplementaryGroups", []) for name in value.split()]
        assert groups == accounts.members.get(service["User"][0], [])
    shared = [set(groups) for user, groups in accounts.members.items() if "importer" not in user]
    assert len(set.intersection(*shared)) == 1  # trainer and courier share the socket, and nothing else
    rows = [line.split() for line in (folder / f"{ACCOUNTS[folder]}.tmpfiles.conf").read_text().splitlines()
            if not line.startswith("#")]  # fmt: skip
    made = {place for kind, place, *_ in rows if kind == "d"}
    for kind, place, mode, user, group in rows:
        assert user == "root" or user in accounts.users, place
        assert group == "root" or group in accounts.groups, place
        assert int(mode.lstrip("~"), 8) & 0o022 == 0, f"{place}: another than its owner writes"
        assert user == "root" or place.endswith("/run") or int(mode.lstrip("~"), 8) & 0o007 == 0, place
        assert kind == "d" or place in made or place.endswith("policy.yaml")
    for unit in folder.glob("*.service"):
        for value in service_of(unit)["ReadWritePaths"]:
            assert set(value.split()) <= made


def test_the_evaluator_stands_behind_the_walls_of_a_trainer() -> None:
    """So that what is tried with a site's trainer and courier holds for the evaluator's."""
    for ours, theirs, user in (("mammofed-trainer", "mammofed-evaluator", "mammofed-evaluator"),
                               ("mammofed-courier", "mammofed-evaluator-courier", "mammofed-evaluator-courier")):
        site, evaluator = service_of(SITE / f"{ours}.service"), service_of(COORDINATOR / f"{theirs}.service")
        for name in (set(site) | set(evaluator)) - {"EnvironmentFile", "InaccessiblePaths", "SupplementaryGroups"}:
            moved = [value.replace(ours, user).replace("/var/lib/mammofed", "/var/lib/mammofed-evaluator")
                     .replace("mammofed-socket", "mammofed-evaluator-socket") for value in site.get(name, [])]
            assert moved == evaluator.get(name, []), name
        assert "/var/lib/mammofed-server" in evaluator["InaccessiblePaths"][0]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_understands_it_and_finds_it_confined(unit: Path) -> None:
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True,
                          check=False)  # fmt: skip
    complaints = [line for line in done.stderr.splitlines() if unit.name in line and "is not executable" not in line]
    assert complaints == []
    limit = "10" if unit.stem in PATIENTS else "20"  # tenths of systemd's scale from 0 (confined) to 10
    judged = subprocess.run(["systemd-analyze", "security", "--offline=yes", f"--threshold={limit}", str(unit)],
                            capture_output=True, text=True, check=False)  # fmt: skip
    assert judged.returncode == 0, judged.stdout[-500:]


@pytest.mark.skipif(shutil.which("systemd-tmpfiles") is None or shutil.which("systemd-sysusers") is None,
                    reason="systemd's own tools are not installed")  # fmt: skip
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: files get owners")
@pytest.mark.parametrize("folder", ACCOUNTS, ids=ACCOUNTS.values())
def test_systemd_makes_the_same_of_users_and_folders_as_the_tests_do(folder: Path, tmp_path: Path) -> None:
    """Or the tests of the roles would try another machine than the one that is installed."""
    users, places = (folder / f"{ACCOUNTS[folder]}.{kind}.conf" for kind in ("sysusers", "tmpfiles"))
    real, ours = tmp_path / "real", tmp_path / "ours"
    for root in (real, ours):
        for name in ("mammofed", "mammofed-evaluator", "mammofed-server"):
            (root / "var/lib" / name / "trainer" / "protocols").mkdir(parents=True)
            (root / "var/lib" / name / "policy.yaml").touch(mode=0o600)
            for file, mode in (("trainer/protocols/a.json", 0o644), ("trainer/run-me", 0o755)):
                (root / "var/lib" / name / file).touch(mode=mode)
    (real / "etc").mkdir()
    subprocess.run(["systemd-sysusers", f"--root={real}", str(users)], check=True, capture_output=True)
    subprocess.run(["systemd-tmpfiles", "--create", f"--root={real}", str(places)], check=True, capture_output=True)
    accounts = Accounts.read(users)
    machine = Machine(ours, accounts, {"/var/lib": str(ours / "var/lib")})
    machine.lay_out(places)
    found_users, found_groups = (_numbers(real / "etc" / kind) for kind in ("passwd", "group"))
    assert set(accounts.users) <= set(found_users) and set(accounts.groups) <= set(found_groups)
    seen = {_named(real, found_users, found_groups), _named(ours, accounts.users, accounts.groups)}
    assert len(seen) == 1


def _numbers(path: Path) -> dict[str, int]:
    """Name -> number of a passwd or group file."""
    rows = [line.split(":") for line in path.read_text().splitlines() if line.count(":") > 2]
    return {row[0]: int(row[2]) for row in rows}


def _named(root: Path, users: Mapping[str, int], groups: Mapping[str, int]) -> str:
    """Every path under /var with mode, owner and group by name."""
    user, group = ({number: name for name, number in names.items()} for names in (users, groups))
    lines = []
    for path in sorted((root / "var").rglob("*")):
        status = path.stat()
        lines.append(f"{path.relative_to(root)} {stat.S_IMODE(status.st_mode):04o} "
                     f"{user.get(status.st_uid, 'root')} {group.get(status.st_gid, 'root')}")  # fmt: skip
    return "\n".join(lines)
