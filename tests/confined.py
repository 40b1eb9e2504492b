"""Runs a command the way a unit file says that systemd would: user, groups, namespaces, mounts. For tests, as root.

There is no second list of what is allowed: what is applied is read from the unit, so a line that is taken out of it is
a wall that is missing in the test. Users come from the sysusers file, owners and modes from the tmpfiles file. What
only systemd can do (filters of system calls, cgroup firewalls) stands in `SYSTEMD_ONLY` and is not applied.
"""

from __future__ import annotations

import json
import os
import resource
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

APPLIED = frozenset({
    "AmbientCapabilities", "CapabilityBoundingSet", "ExecStart", "Group", "InaccessiblePaths", "LimitCORE",
    "NoNewPrivileges", "PrivateDevices", "PrivateNetwork", "PrivateTmp", "ProtectHome", "ProtectProc", "ProtectSystem",
    "ReadOnlyPaths", "ReadWritePaths", "SupplementaryGroups", "UMask", "User",
})  # fmt: skip
SYSTEMD_ONLY = frozenset({
    "EnvironmentFile", "IPAddressAllow", "IPAddressDeny", "KeyringMode", "KillMode", "LockPersonality", "ProtectClock",
    "ProtectControlGroups", "ProtectHostname", "ProtectKernelLogs", "ProtectKernelModules", "ProtectKernelTunables",
    "RemoveIPC", "Restart", "RestartPreventExitStatus", "RestartSec", "RestrictAddressFamilies", "RestrictNamespaces",
    "RestrictRealtime", "RestrictSUIDSGID", "SystemCallArchitectures", "SystemCallErrorNumber", "SystemCallFilter",
    "TimeoutStopSec", "Type",
})  # fmt: skip
HOMES, TEMPORARY = ("/home", "/root", "/run/user"), ("/tmp", "/var/tmp")
# A checkout or a Python under one of these is put back, alone and read-only: installed, they lie in /opt and /usr.
CODE = tuple(dict.fromkeys(
    str(Path(place).resolve()) for place in (Path(__file__).parents[1], sys.prefix, sys.base_prefix)
))  # fmt: skip
FIRST_ID = 61_000


def service_of(unit: Path) -> dict[str, list[str]]:
    """The `[Service]` section: name -> values in order; an empty assignment stays as an empty text."""
    found: dict[str, list[str]] = {}
    section = ""
    for line in unit.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            section = line
        elif section == "[Service]" and line and not line.startswith(("#", ";")):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


@dataclass
class Accounts:
    """Users and groups of a sysusers file with numbers from `first`, which no real account has."""

    users: dict[str, int] = field(default_factory=dict)
    groups: dict[str, int] = field(default_factory=dict)
    members: dict[str, list[str]] = field(default_factory=dict)
    homes: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, *, first: int = FIRST_ID) -> Accounts:
        """Read `g`, `u` and `m` lines (sysusers.d(5))."""
        made = cls()
        for words in _rows(path):
            match words[0]:
                case "g":
                    made.groups[words[1]] = first + len(made.groups)
                case "u":
                    made.groups[words[1]] = first + len(made.groups)
                    made.users[words[1]], made.homes[words[1]] = made.groups[words[1]], words[4]
                case "m":
                    made.members.setdefault(words[1], []).append(words[2])
                case other:
                    raise AssertionError(other)
        return made

    def write(self, folder: Path, *, place: Callable[[str], str]) -> None:
        """passwd and group files with these accounts beside root; `place` says where a home lies here."""
        passwd = [f"{name}:x:{uid}:{uid}::{place(self.homes[name])}:/usr/sbin/nologin"
                  for name, uid in self.users.items()]  # fmt: skip
        joined = {group: [u for u, groups in self.members.items() if group in groups] for group in self.groups}
        group = [f"{name}:x:{gid}:{','.join(joined[name])}" for name, gid in self.groups.items()]
        (folder / "passwd").write_text("\n".join(["root:x:0:0:root:/root:/bin/sh", *passwd, ""]))
        (folder / "group").write_text("\n".join(["root:x:0:", *group, ""]))


@dataclass(frozen=True)
class Machine:
    """A machine with the accounts and folders of a role's installation, under a root of its own.

    moved: where what the files call, say, /var/lib/mammofed lies here.
    """

    root: Path
    accounts: Accounts
    moved: Mapping[str, str]

    def path(self, text: str) -> str:
        """A path of the unit files, here."""
        for old in sorted(self.moved, key=len, reverse=True):
            if text == old or text.startswith(old + "/"):
                return self.moved[old] + text[len(old) :]
        return text

    def lay_out(self, tmpfiles: Path) -> None:
        """Owners and modes as a tmpfiles file says: lines `d`, `z`, `Z`, masked modes `~` (tmpfiles.d(5))."""
        for kind, place, mode, user, group in _rows(tmpfiles):
            path, masked, bits = Path(self.path(place)), mode.startswith("~"), int(mode.lstrip("~"), 8)
            owner = (self.accounts.users.get(user, 0), self.accounts.groups.get(group, 0))
            if kind == "d":
                path.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                assert kind in "zZ", place
                continue
            for there in [path, *(path.rglob("*") if kind == "Z" else ())]:
                os.chown(there, *owner, follow_symlinks=False)
                there.chmod(_masked(there, bits) if masked else bits)

    def command(self, unit: Path, command: Sequence[str] | None = None) -> list[str]:
        """The unit's own command, or another in its place, to be started by root."""
        service = service_of(unit)
        unknown = set(service) - APPLIED - SYSTEMD_ONLY
        assert not unknown, f"{unit.name}: say in tests/confined.py whether these are applied: {unknown}"
        spec = {
            "user": self.accounts.users[_one(service, "User")], "group": self.accounts.groups[_one(service, "Group")],
            "groups": [self.accounts.groups[name] for name in _words(service, "SupplementaryGroups")],
            "write": [self.path(p) for p in _words(service, "ReadWritePaths")],
            "read": [self.path(p) for p in _words(service, "ReadOnlyPaths")],
            "hide": [("-" if p.startswith("-") else "") + self.path(p.lstrip("-"))
                     for p in _words(service, "InaccessiblePaths")],
            "yes": sorted(name for name, values in service.items() if values == ["yes"]),
            "strict": _one(service, "ProtectSystem") == "strict",
            "proc": _one(service, "ProtectProc"), "umask": _one(service, "UMask"), "core": _one(service, "LimitCORE"),
            "no_caps": service.get("CapabilityBoundingSet") == [""] and service.get("AmbientCapabilities") == [""],
            "etc": str(self.root / "etc"), "stage": str(self.root / "stage"),
            "command": list(command) if command else [self.path(w) for w in shlex.split(_one(service, "ExecStart"))],
        }  # fmt: skip
        net = ["--net"] if "PrivateNetwork" in spec["yes"] else []
        return ["unshare", "--mount", "--propagation", "private", *net, "--", sys.executable, "-P", __file__,
                json.dumps(spec)]  # fmt: skip

    def prepare(self) -> None:
        """Make what the walls are built of."""
        for name in ("nothing", "dev", *(f"code/{number}" for number in range(len(CODE)))):
            (self.root / "stage" / name).mkdir(parents=True)
        (self.root / "stage" / "nothing").chmod(0)
        (self.root / "etc").mkdir()
        self.accounts.write(self.root / "etc", place=self.path)

    def remove(self) -> None:
        """Take everything away."""
        shutil.rmtree(self.root, ignore_errors=True)


def why_not() -> str:
    """Why this machine cannot play a machine with roles; empty where it can."""
    if os.geteuid() != 0:
        return "needs root: it changes users and makes namespaces"
    for tool in ("unshare", "setpriv", "mount"):
        if shutil.which(tool) is None:
            return f"needs {tool}"
    probe = ["unshare", "--mount", "--net", "--propagation", "private", "--", "sh", "-c",
             "mount -t tmpfs none /var/tmp && mount -t proc proc /proc -o hidepid=invisible && "
             f"setpriv --reuid {FIRST_ID} --regid {FIRST_ID} --clear-groups true"]  # fmt: skip
    done = subprocess.run(probe, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else f"this machine does not let root do it: {done.stderr.strip()[:200]}"


def _rows(path: Path) -> Iterator[list[str]]:
    for line in path.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            yield shlex.split(line)


def _masked(path: Path, bits: int) -> int:
    """tmpfiles.d(5): `~` keeps the right to execute where somebody has it; folders can be entered."""
    mode = path.stat().st_mode
    return bits if path.is_dir() or mode & 0o111 else bits & ~0o111


def _one(service: Mapping[str, list[str]], name: str) -> str:
    return service.get(name, [""])[-1]


def _words(service: Mapping[str, list[str]], name: str) -> list[str]:
    words: list[str] = []
    for value in service.get(name, []):
        words = words + value.split() if value else []
    return words


# --- inside the new namespaces: the walls are put up, then the command takes this process's place ---


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def _mounts() -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line.split()[4].encode().decode("unicode_escape") for line in lines]


def _enter(spec: Mapping[str, Any]) -> None:
    yes, stage = set(spec["yes"]), Path(spec["stage"])
    for name in ("passwd", "group"):
        _mount("--bind", f"{spec['etc']}/{name}", f"/etc/{name}")
    for path in spec["write"]:
        _mount("--bind", path, path)
    if spec["strict"]:
        for place in _mounts():
            if place not in spec["write"] and not place.startswith(("/proc", "/sys", "/dev")):
                _mount("-o", "remount,bind,ro", place)
    for path in spec["read"]:
        _mount("--bind", path, path)
        _mount("-o", "remount,bind,ro", path)
    hidden = [path.lstrip("-") for path in spec["hide"] if not path.startswith("-") or Path(path[1:]).exists()]
    for path in hidden:
        _mount("--bind", str(stage / "nothing"), path)
    _replace([path for path in HOMES if "ProtectHome" in yes and Path(path).exists()], "711", stage / "code")
    _replace([path for path in TEMPORARY if "PrivateTmp" in yes], "1777", stage / "code")
    if "PrivateDevices" in yes:
        _private_devices(stage / "dev")
    if spec["proc"] == "invisible":
        _mount("-t", "proc", "-o", "hidepid=invisible", "proc", "/proc")


def _replace(places: Sequence[str], mode: str, stage: Path) -> None:
    """Lay an empty folder over each place; code that lies in it is put back."""
    code = [path for path in CODE if any(Path(path).is_relative_to(place) for place in places)]
    for number, path in enumerate(code):
        _mount("--bind", path, str(stage / str(number)))
    for place in places:
        _mount("-t", "tmpfs", "-o", f"mode={mode}", "none", place)
    for number, path in enumerate(code):
        if not Path(path).exists():
            Path(path).mkdir(parents=True)
            _mount("--bind", str(stage / str(number)), path)
            _mount("-o", "remount,bind,ro", path)


def _private_devices(stage: Path) -> None:
    _mount("-t", "tmpfs", "-o", "mode=755", "none", str(stage))
    for name in ("null", "zero", "full", "random", "urandom"):
        (stage / name).touch()
        _mount("--bind", f"/dev/{name}", str(stage / name))
    (stage / "shm").mkdir(mode=0o777)
    _mount("--rbind", str(stage), "/dev")


def _main(spec: Mapping[str, Any]) -> None:
    _enter(spec)
    if spec["umask"]:
        os.umask(int(spec["umask"], 8))
    if spec["core"]:
        resource.setrlimit(resource.RLIMIT_CORE, (int(spec["core"]), int(spec["core"])))
    command = ["setpriv", f"--reuid={spec['user']}", f"--regid={spec['group']}"]
    command.append(f"--groups={','.join(map(str, spec['groups']))}" if spec["groups"] else "--clear-groups")
    if "NoNewPrivileges" in spec["yes"]:
        command.append("--no-new-privs")
    if spec["no_caps"]:
        command += ["--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all"]
    os.chdir("/")
    os.execvp(command[0], [*command, "--", *spec["command"]])


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
