"""What every role needs of its machine: memory, disk, clock, names, versions, certificates; called by both doctors.

Each check has a function that decides from plain values and, where values must be fetched, one that fetches them.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from shared_model.control import AHEAD_S, COURIER_BEHIND_S
from shared_model.doctor.check import Check, amber, green, red

GIB = 1 << 30
UNEASY_S = 2.0
TESTED = {"flwr": "1.41.0", "torch": "2.13", "opacus": "1.6.0", "grpcio": "1.", "cryptography": "5"}
"""Versions as this release pins them (pyproject.toml; a test compares), by the beginning of their number."""
_TIME_ERROR = 5  # return value of adjtimex(2) while the clock is not synchronised


# --- memory and disk ---


def memory(available: int, *, red_below: int, amber_below: int, what: str) -> Check:
    """Memory in bytes that a new process may take."""
    title, words = "Memory", f"{available / GIB:.1f} GiB free for {what}"
    to_do = f"give this machine {amber_below / GIB:.0f} GiB for it, or end what else takes memory"
    if available < red_below:
        return red("memory", title, words, to_do=to_do)
    if available < amber_below:
        return amber("memory", title, words, to_do=to_do)
    return green("memory", title, words)


def available_memory(proc: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """MemAvailable, or what a container's limit (cgroup 2) leaves, whichever is less; bytes."""
    fields = dict(line.split(":", 1) for line in proc.read_text().splitlines() if ":" in line)
    free = int(fields["MemAvailable"].split()[0]) << 10
    limit = cgroup / "memory.max"
    if limit.exists() and (text := limit.read_text().strip()) != "max":
        free = min(free, max(0, int(text) - int((cgroup / "memory.current").read_text())))
    return free


def disk(free: int, *, files_free: int, read_only: bool, red_below: int, amber_below: int, what: str,
         name: str = "disk") -> Check:  # fmt: skip
    """Room in bytes and inodes where `what` is written."""
    title = "Disk"
    if read_only:
        return red(name, title, f"the file system of {what} is mounted read-only",
                   to_do="look into the kernel's log: a damaged disk is mounted so")  # fmt: skip
    if files_free == 0:
        return red(name, title, f"no file can be made any more where {what} lies (no inode is free)",
                   to_do="remove files that nobody needs")  # fmt: skip
    words = f"{free / GIB:.1f} GiB free for {what}"
    to_do = f"make room: {amber_below / GIB:.0f} GiB are comfortable"
    if free < red_below:
        return red(name, title, words, to_do=to_do)
    if free < amber_below:
        return amber(name, title, words, to_do=to_do)
    return green(name, title, words)


def disk_of(path: Path, *, red_below: int, amber_below: int, what: str, name: str = "disk") -> Check:
    """:func:`disk` for the file system of a path that may not exist yet."""
    while not path.exists() and path != path.parent:
        path = path.parent
    found = os.statvfs(path)
    limited = found.f_files > 0  # some file systems have no fixed number of inodes and say 0
    return disk(found.f_bavail * found.f_frsize, files_free=found.f_favail if limited else 1,
                read_only=bool(found.f_flag & os.ST_RDONLY), red_below=red_below, amber_below=amber_below,
                what=what, name=name)  # fmt: skip


# --- clock ---


def clock(ahead_s: float | None, *, doubt_s: float, disciplined: bool | None) -> Check:
    """This machine's clock.

    Args:
        ahead_s: seconds that it is ahead of the coordinator's; None: not compared.
        doubt_s: half the round trip, by which `ahead_s` may be wrong.
        disciplined: whether the kernel says that somebody (NTP) keeps it right; None: it does not say.
    """
    title, to_do = "Clock", "set the clock by NTP (chrony or systemd-timesyncd), against the hospital's time server"
    if ahead_s is not None:
        how = "ahead of" if ahead_s >= 0 else "behind"
        words = f"{abs(ahead_s):.1f} s {how} the coordinator's (give or take {doubt_s:.1f} s)"
        bounds = (f"more than {AHEAD_S:g} s ahead the coordinator refuses it, more than {COURIER_BEHIND_S:g} s behind "
                  "its courier hands nothing on")  # fmt: skip
        if ahead_s - doubt_s > AHEAD_S or -ahead_s - doubt_s > COURIER_BEHIND_S:
            return red("clock", title, f"{words}; {bounds}", to_do=to_do)
        if abs(ahead_s) - doubt_s > UNEASY_S:
            return amber("clock", title, f"{words}; {bounds}", to_do=to_do)
        return green("clock", title, words)
    if disciplined is False:
        return amber("clock", title, "nobody keeps it right: the kernel says that it is not synchronised", to_do=to_do)
    said = "kept by NTP, as the kernel says" if disciplined else "the kernel does not say whether NTP keeps it"
    return green("clock", title, f"not compared with another clock; {said}")


def clock_is_disciplined() -> bool | None:
    """Whether the kernel calls its clock synchronised (adjtimex(2), which only reads here); None: no such call."""
    try:
        library = ctypes.CDLL(None, use_errno=True)
        state = library.adjtimex(ctypes.create_string_buffer(512))  # struct timex has 208 bytes; modes = 0: read
    except (OSError, AttributeError):
        return None
    return None if state < 0 else state != _TIME_ERROR


# --- names ---


def name_of(host: str, *, title: str, name: str, proxied: bool = False, lookup: object = None) -> Check:
    """Whether a host name is known here; behind a proxy it need not be."""
    ask = lookup if callable(lookup) else socket.getaddrinfo
    try:
        found = {entry[4][0] for entry in ask(host, None, type=socket.SOCK_STREAM)}
    except (socket.gaierror, UnicodeError):
        if proxied:
            return green(name, title, f"{host} is not known here; the proxy looks it up")
        return red(name, title, f"the name {host} is not known here",
                   to_do="check the name and this machine's DNS, or use the hospital's proxy")  # fmt: skip
    return green(name, title, f"{host} is known", local=", ".join(sorted(map(str, found))))


# --- versions ---


def versions(installed: Mapping[str, str | None], *, expected: Mapping[str, str], python: tuple[int, int]) -> Check:
    """What is installed against what the release was tested with. expected: the beginning of each version."""
    title, to_do = "Versions", "install the release again with its constraints.txt (`mammofed bundle` has it all)"
    shown = ", ".join(f"{name} {number or 'absent'}" for name, number in installed.items())
    words = f"Python {python[0]}.{python[1]}, {shown}"
    absent = [name for name, number in installed.items() if number is None]
    if absent or python < (3, 11) or installed.get("flwr") != expected["flwr"]:
        wrong = f"absent: {', '.join(absent)}" if absent else f"Flower {expected['flwr']} and Python 3.11 are needed"
        return red("versions", title, f"{words}; {wrong}", to_do=to_do)
    other = [n for n, number in installed.items() if n in expected and not (number or "").startswith(expected[n])]
    if other:
        return amber("versions", title, f"{words}; tested with another {', '.join(other)}", to_do=to_do)
    return green("versions", title, words)


def installed_versions() -> dict[str, str | None]:
    """Versions of what decides about results and about the wire."""
    found: dict[str, str | None] = {}
    for name in TESTED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def versions_here() -> Check:
    """:func:`versions` of this Python."""
    return versions(installed_versions(), expected=TESTED, python=sys.version_info[:2])


def program(name: str) -> str | None:
    """Where a program of this installation lies: beside its Python, or in PATH."""
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else shutil.which(name)


# --- certificates ---


def days_left(days: float, *, name: str, title: str, what: str, amber_below: float, to_do: str) -> Check:
    """A certificate's time. to_do: who makes a new one, and how."""
    if days <= 0:
        return red(name, title, f"{what} ran out {-days:.0f} days ago", to_do=to_do)
    words = f"{what} is good for {days:.0f} more days"
    return amber(name, title, words, to_do=to_do) if days < amber_below else green(name, title, words)
