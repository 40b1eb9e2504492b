"""Three users at a site, as the unit files make them: the trainer reaches nobody, and the courier's user finds nothing.

Everything here runs under the very lines of `client/deploy/units` (see tests/confined.py). Each refusal has its
counterpart, so that a test cannot pass because the probe itself is broken.
"""

from __future__ import annotations

import grp
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from client.deploy.home import Party, SiteHome
from client.deploy.policy_file import Policy
from client.privacy.ledger import Ledger
from client.trainer.client import call
from shared_model.certificates import Role
from shared_model.messages import DescribeRequest, ErrorReply, Frame, TrainReply, decode, encode
from shared_model.private_files import make_private_folder, write_private
from shared_model.signed_protocol import SignedProtocol
from tests.confined import FIRST_ID, Accounts, Machine, why_not
from tests.signed import COORDINATOR, KEY, NAME, seal

ROOT = Path(__file__).resolve().parents[3]
UNITS = ROOT / "client" / "deploy" / "units"
TRAINER, COURIER, IMPORTER = (UNITS / f"mammofed-{role}.service" for role in ("trainer", "courier", "importer"))
BIN = str(Path(sys.executable).parent)
WHY_NOT = why_not()
SECRET = b"a secret of another role"
START_S = 300.0  # the trainer imports for some seconds, on a busy machine for many
ANSWER_S = 300.0

needs_roles = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)


@dataclass(frozen=True)
class Site:
    """A machine with a trainer that runs as its unit says."""

    machine: Machine
    home: SiteHome
    study: Any
    pid: int

    def probe(self, unit: Path, code: str, *arguments: str, input: bytes = b"") -> Any:
        """Run Python as a unit's user, behind the unit's walls; what it prints as JSON."""
        command = self.machine.command(unit, [sys.executable, "-P", "-c", code, *arguments])
        done = subprocess.run(command, input=input, capture_output=True, env=environment(), timeout=START_S,
                              check=False)  # fmt: skip
        assert done.returncode == 0, done.stderr.decode()
        return json.loads(done.stdout)

    def ask(self, message: Any, arrays: Any = None, envelope: bytes | None = None) -> bytes:
        return call(self.home.socket, "site-01", encode(Frame(message, arrays or {}, envelope)), ANSWER_S)


def environment() -> dict[str, str]:
    return {"PATH": f"{BIN}:{os.defpath}", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, study_maker: Callable[..., Any]) -> Iterator[Site]:
    study = study_maker(tmp_path_factory.mktemp("roles") / "study", private=True)
    root = Path(tempfile.mkdtemp(prefix="mf-", dir="/var/lib"))
    root.chmod(0o755)
    machine = Machine(root, Accounts.read(UNITS / "mammofed-site.sysusers.conf"),
                      {"/var/lib/mammofed": str(root / "home"), "/opt/mammofed/bin": BIN})  # fmt: skip
    process = None
    try:
        home = install(machine, study)
        process = subprocess.Popen(machine.command(TRAINER), env=environment(), start_new_session=True,
                                   stdout=(root / "log").open("wb"), stderr=subprocess.STDOUT)  # fmt: skip
        wait_for(home.socket, process, root)
        yield Site(machine, home, study, trainer_pid(home))
    finally:
        if process is not None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        machine.remove()


def install(machine: Machine, study: Any) -> SiteHome:
    """What an administrator, as root, leaves on the disk before the services start."""
    home = SiteHome(machine.root / "home")
    machine.prepare()
    machine.lay_out(UNITS / "mammofed-site.tmpfiles.conf")
    cohort = home.folder / "cohorts" / "cohort"
    subprocess.run(["cp", "-r", str(study.config("site-01").cohort), str(cohort)], check=True)
    policy = Policy(cohort=cohort, device="cpu", private_only=True, epsilon_limit=8.0, delta_limit=1e-4,
                    salt="0123456789abcdef", test_fraction=0.3)  # fmt: skip
    write_private(home.policy_file, policy.to_yaml().encode())
    write_private(home.trainer / "party.json", Party(site="site-01", role=Role.SITE).model_dump_json().encode())
    write_private(home.trainer / "coordinator.json", COORDINATOR.model_dump_json().encode())
    make_private_folder(home.trainer / "logs")
    make_private_folder(home.protocols)
    signed = SignedProtocol.sign(study.protocol, name=NAME, key=KEY)
    write_private(home.protocols / "approved.json", signed.to_json().encode())
    write_private(home.folder / "identity" / "tls.pem", SECRET)
    write_private(home.courier / "signing.key", SECRET)
    write_private(home.folder / "importer" / "importer.key", SECRET)
    machine.lay_out(UNITS / "mammofed-site.tmpfiles.conf")
    for there in [cohort, *cohort.rglob("*")]:  # as the importer leaves it: its umask, the folder's group
        os.chown(there, machine.accounts.users["mammofed-importer"], machine.accounts.groups["mammofed-cohort"])
        there.chmod(0o2750 if there.is_dir() else 0o640)
    return home


def wait_for(place: Path, process: subprocess.Popen[bytes], root: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(place))
            except OSError:
                time.sleep(0.1)
                continue
            return
    logs = [path.read_text(errors="replace") for path in (root / "log", root / "home/trainer/logs/trainer.log")
            if path.exists()]  # fmt: skip
    raise AssertionError("the trainer does not come up: " + "\n".join(logs)[-3000:])


def trainer_pid(home: SiteHome) -> int:
    """The process that holds the patients: the trainer's server itself, below its supervisor."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"client.trainer.server" in words and str(home.socket).encode() in words and b"guard" not in words[2]:
            return int(path.name)
    raise AssertionError("no trainer")


# --- the trainer reaches nobody ---


CONNECT = """
import json, socket, sys
def tried(what):
    try:
        return str(what() or "connected")
    except OSError as error:
        return type(error).__name__
def tcp(family, address):
    with socket.socket(family, socket.SOCK_STREAM) as s:
        s.settimeout(60); s.connect(address)
def udp():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.sendto(b"x", ("192.0.2.1", 53))
def unix():
    with socket.socket(socket.AF_UNIX) as s:
        s.connect("\\0" + sys.argv[3])
print(json.dumps({
    "loopback": tried(lambda: tcp(socket.AF_INET, ("127.0.0.1", int(sys.argv[1])))),
    "own address": tried(lambda: tcp(socket.AF_INET, (sys.argv[2], int(sys.argv[1])))),
    "loopback 6": tried(lambda: tcp(socket.AF_INET6, ("::1", int(sys.argv[1])))),
    "datagram": tried(udp),
    "abstract unix": tried(unix),
}))
"""


def own_address() -> str:
    """This machine's address beyond the loopback, or the loopback where it has none; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"


@needs_roles
def test_the_trainer_can_open_no_connection_and_the_same_probe_can_as_the_courier(site: Site) -> None:
    name = f"mammofed-{os.getpid()}"
    with socket.create_server(("0.0.0.0", 0)) as door, socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind("\0" + name)
        abstract.listen()
        arguments = (str(door.getsockname()[1]), own_address(), name)
        inside = site.probe(TRAINER, CONNECT, *arguments)
        outside = site.probe(COURIER, CONNECT, *arguments)
    assert "connected" not in inside.values()
    assert (outside["loopback"], outside["own address"], outside["abstract unix"]) == ("connected",) * 3


@needs_roles
def test_the_running_trainer_is_what_its_unit_says(site: Site) -> None:
    proc = Path(f"/proc/{site.pid}")
    status = dict(line.split(":\t", 1) for line in (proc / "status").read_text().splitlines() if ":\t" in line)
    accounts = site.machine.accounts
    assert set(status["Uid"].split()) == {str(accounts.users["mammofed-trainer"])}
    shared = {accounts.groups["mammofed-cohort"], accounts.groups["mammofed-socket"]}
    assert set(map(int, status["Groups"].split())) == shared
    assert status["NoNewPrivs"] == "1"
    assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert (proc / "ns/net").readlink() != Path("/proc/self/ns/net").readlink()
    interfaces = [line.split(":")[0].strip() for line in (proc / "net/dev").read_text().splitlines()[2:]]
    assert [name for name in interfaces if name != "lo"] == [] or all(n in TUNNELS for n in interfaces if n != "lo")
    routes = (proc / "net/route").read_text().splitlines()[1:] if (proc / "net/route").exists() else []
    assert routes == []


TUNNELS = {"tunl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "sit0", "ip6tnl0", "ip6gre0"}  # down, no route

TOUCH = """
import json, os, sys
found = {}
for path in sys.argv[1:]:
    try:
        with open(path, "rb") as stream:
            stream.read(1)
        found[path] = "read"
    except OSError as error:
        found[path] = type(error).__name__
    try:
        if os.path.isdir(path):
            open(os.path.join(path, "planted"), "x").close()
        else:
            open(path, "r+b").close()
        found[path] = "written"
    except OSError:
        pass
print(json.dumps(found))
"""


@needs_roles
def test_the_trainer_cannot_change_what_was_approved_nor_the_cohort_nor_see_the_other_roles(site: Site) -> None:
    home = site.home
    cohort, anybody = home.folder / "cohorts" / "cohort", site.machine.root / "anybody"
    anybody.mkdir(exist_ok=True)
    anybody.chmod(0o777)
    places = {
        "approval": home.protocols / "approved.json", "approvals": home.protocols, "cohort": cohort / "cohort.json",
        "pixels": cohort / "pixels.npy", "policy": home.policy_file, "ledger's folder": home.state,
        "tls": home.folder / "identity" / "tls.pem", "courier": home.courier / "signing.key",
        "importer": home.folder / "importer" / "importer.key", "etc": Path("/etc"), "usr": Path("/usr"),
        "code": ROOT / "mammofed.py", "a folder for anybody": anybody,
    }  # fmt: skip
    found = site.probe(TRAINER, TOUCH, *map(str, places.values()))
    outcome = {name: found[str(path)] for name, path in places.items()}
    assert outcome["approval"] == outcome["cohort"] == outcome["pixels"] == outcome["policy"] == "read"
    assert {outcome[name] for name in ("tls", "courier", "importer")} == {"PermissionError"}
    assert [name for name, what in outcome.items() if what == "written"] == ["ledger's folder"]


# --- a hostile app, run as the courier's user behind the courier's walls ---


HUNT = """
import json, os, sys
home, pid, secrets = sys.argv[1], sys.argv[2], sys.argv[3:]
found = []
def tried(what, *a):
    try:
        what(*a)
        return True
    except OSError:
        return False
def read(path):
    with open(path, "rb") as stream:
        stream.read(1)
def inside(path):  # what is the courier's own is no find
    return not path.startswith((home + "/courier", home + "/identity"))
for folder in (home, "/proc/%s/root%s" % (pid, home), "/proc/%s/cwd" % pid, "/proc/%s/fd" % pid):
    for base, names, files in os.walk(folder):
        for name in files:
            path = os.path.join(base, name)
            if inside(path) and tried(read, path):
                found.append(path)
for path in secrets:
    for place in (path, "/proc/%s/root%s" % (pid, path)):
        if tried(read, place):
            found.append(place)
    link = home + "/courier/link"
    if tried(os.link, path, link) and tried(read, link):
        found.append("linked " + path)
for name in ("mem", "environ", "maps", "auxv", "fd/3", "map_files"):
    if tried(read, "/proc/%s/%s" % (pid, name)):
        found.append(name)
if tried(os.kill, int(pid), 0):
    found.append("kill")
for path in (home + "/trainer/protocols/mine.json", home + "/policy.yaml", home + "/run/other.sock"):
    if tried(lambda: open(path, "wb").close()):
        found.append("written " + path)
for path in (home + "/run/trainer.sock", home + "/trainer", home + "/run"):
    if tried(os.rename, path, path + ".gone") or tried(os.chmod, path, 0o777):
        found.append("moved " + path)
import ctypes
if ctypes.CDLL(None).ptrace(16, int(pid), 0, 0) == 0:
    found.append("ptrace")
own = [p for p in (home + "/courier/signing.key", home + "/identity/tls.pem") if tried(read, p)]
print(json.dumps({"found": found, "own": own}))
"""


def secrets_of(site: Site) -> list[str]:
    """Everything of the trainer and the cohort, by full path: a courier that knows where to look."""
    cohort = site.home.folder / "cohorts"
    return [str(path) for folder in (cohort, site.home.trainer, site.home.folder / "importer")
            for path in folder.rglob("*") if path.is_file()]  # fmt: skip


@needs_roles
def test_a_hostile_app_finds_no_patient_no_ledger_and_no_key_of_the_trainer(site: Site) -> None:
    site.ask(site.study.train(), site.study.arrays, seal(site.study.train()))
    secrets = secrets_of(site)
    names = {Path(path).name for path in secrets}
    assert {"ledger.json", "audit.key", "audit.jsonl", "pixels.npy", "patients.json", "importer.key"} <= names
    hunted = site.probe(COURIER, HUNT, str(site.home.folder), str(site.pid), *secrets)
    assert hunted["found"] == []
    assert len(hunted["own"]) == 2  # the probe can read what it may


@needs_roles
def test_a_wall_stands_where_an_administrator_opened_the_modes(site: Site) -> None:
    """Each line of the units is a second lock: whoever may read by the modes still does not see it."""
    cohort = site.home.folder / "cohorts"
    opened = [cohort, *cohort.rglob("*"), site.home.trainer, site.home.state, site.home.state / "audit.jsonl"]
    modes = {path: path.stat().st_mode for path in opened}
    try:
        for path in opened:
            path.chmod(0o777)
        secrets = [str(path) for path in opened if path.is_file()]
        hunted = site.probe(COURIER, HUNT, str(site.home.folder), str(site.pid), *secrets)
        assert hunted["found"] == []
    finally:
        for path, mode in modes.items():
            path.chmod(mode & 0o7777)


KNOCK = """
import base64, json, sys
from pathlib import Path
import grpc
from client.trainer.client import call
from client.trainer.wire import CHANNEL_OPTIONS, SERVICE, address
from shared_model.messages import decode, parse_fields
where, answers = Path(sys.argv[1]), []
for line in sys.stdin:
    data = base64.b64decode(line)
    try:
        reply = call(where, "site-01", data, 300.0)
        frame = decode(reply)
        answers.append([frame.message.kind, getattr(frame.message, "code", 0), sorted(frame.arrays), len(reply)])
    except Exception as error:
        answers.append([type(error).__name__, 0, [], 0])
with grpc.insecure_channel(address(where), options=CHANNEL_OPTIONS) as channel:
    for method in ("/mammofed.Trainer/Other", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
                   "/grpc.health.v1.Health/Check"):
        try:
            list(channel.stream_stream(method)(iter([b""]), timeout=120))
            answers.append(["answered", 0, [], 0])
        except grpc.RpcError as error:
            answers.append([error.code().name, 0, [], 0])
print(json.dumps(answers))
"""


def knock(site: Site, frames: list[bytes]) -> list[Any]:
    import base64

    lines = b"\n".join(base64.b64encode(data) for data in frames)
    return list(site.probe(COURIER, KNOCK, str(site.home.socket), input=lines))


@needs_roles
def test_nothing_but_declared_messages_passes_the_socket(site: Site) -> None:
    study = site.study
    train, judge = study.train(2), study.evaluate("site")
    good = encode(Frame(train, study.arrays, seal(train)))
    frames = {
        "describe": encode(Frame(DescribeRequest())),
        "unsigned": encode(Frame(train, study.arrays)),
        "unsigned evaluation": encode(Frame(judge, study.arrays)),
        "evaluator's": encode(Frame(study.evaluate("test"), study.arrays, seal(study.evaluate("test")))),
        "nonsense": b"GET / HTTP/1.1\r\n\r\n",
        "empty": b"",
        "a reply": encode(Frame(ErrorReply(code=1, reason="x"))),
        "unknown field": good.replace(b'\\"round\\":2', b'\\"rownd\\":2'),
        "changed round": good.replace(b'\\"round\\":2', b'\\"round\\":3'),
        "cut": good[: len(good) // 2],
    }  # fmt: skip
    answers = knock(site, list(frames.values()))
    assert answers[0][0] == "described"
    assert [kind for kind, *_ in answers[1 : len(frames)]] == ["error"] * (len(frames) - 1)
    assert all(arrays == [] and size < 4096 for _, _, arrays, size in answers)
    assert [status for status, *_ in answers[len(frames) :]] == ["UNIMPLEMENTED"] * 3


@needs_roles
def test_a_replayed_request_gets_the_same_bytes_and_never_new_noise(site: Site) -> None:
    study = site.study
    request = study.train(3)
    frame = encode(Frame(request, study.arrays, seal(request)))
    before = ledger(site)
    first = call(site.home.socket, "site-01", frame, ANSWER_S)
    assert isinstance(decode(first).message, TrainReply) and decode(first).arrays
    replies: list[bytes] = []
    threads = [threading.Thread(target=lambda: replies.append(call(site.home.socket, "site-01", frame, ANSWER_S)))
               for _ in range(4)]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(replies) == {first}
    sizes = {size for _, _, _, size in knock(site, [frame] * 3)[:3]}
    assert sizes == {len(first)}
    assert len(ledger(site)) == len(before) + 1
    again = study.train(3, attempt=2)  # the courier alone cannot ask for another attempt: that needs a signature
    forged = encode(Frame(again, study.arrays, seal(request)))
    assert isinstance(decode(call(site.home.socket, "site-01", forged, ANSWER_S)).message, ErrorReply)
    assert len(ledger(site)) == len(before) + 1


def ledger(site: Site) -> list[Any]:
    path = site.home.state / "ledger.json"
    return list(Ledger(path).records())


@needs_roles
def test_the_socket_is_for_the_courier_and_for_no_third_user(site: Site) -> None:
    status = site.home.socket.stat()
    assert (status.st_mode & 0o777, status.st_gid) == (0o660, site.machine.accounts.groups["mammofed-socket"])
    knocking = "import json, socket, sys; s = socket.socket(socket.AF_UNIX)\n" \
               "try: s.connect(sys.argv[1]); print(json.dumps('in'))\n" \
               "except OSError as e: print(json.dumps(type(e).__name__))"  # fmt: skip
    assert site.probe(COURIER, knocking, str(site.home.socket)) == "in"
    stranger = ["setpriv", f"--reuid={FIRST_ID + 900}", f"--regid={FIRST_ID + 900}", "--clear-groups", sys.executable,
                "-c", knocking, str(site.home.socket)]  # fmt: skip
    done = subprocess.run(stranger, capture_output=True, check=True)
    assert json.loads(done.stdout) == "PermissionError"
    assert site.probe(IMPORTER, knocking, str(site.home.socket)) in ("PermissionError", "FileNotFoundError")


@needs_roles
def test_what_root_writes_belongs_to_the_role_whose_folder_it_is(site: Site) -> None:
    owner = site.machine.accounts.users["mammofed-trainer"]
    for path in (site.home.protocols / "approved.json", site.home.trainer / "party.json", site.home.trainer / "logs"):
        assert path.stat().st_uid == owner
    assert grp.getgrgid(0).gr_name  # the machine's own accounts are as they were
