"""A real Orthanc for tests, in a network namespace of its own, because it listens on every address of its machine.

    with Orthanc(tmp_path) as pacs:
        pacs.store(tmp_path / "films")          # C-STORE by storescu of dcmtk, or by the REST API
        pacs.host, pacs.dicom_port, pacs.url    # 127.0.0.1 on this side of the border
        pacs.kill(); pacs.start()               # SIGKILL; what it had is on its disk

C-MOVE: an importer that listens on 127.0.0.1:`pacs.receive_port` on this side is known there as MAMMOFED. Other
commands can be run beside it, `pacs.inside(["storescu", ...])`. The module's `why_not()` says in words what is missing.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from tests.ports import free_port

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
RELAY = Path(__file__).with_name("relay.py")
ORTHANC = shutil.which("Orthanc", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
START_SECONDS = 120.0  # on a busy machine; nobody waits longer than it takes
INSTALL = "apt-get install -y --no-install-recommends orthanc orthanc-dicomweb dcmtk"
_UNSHARE = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--net"]


def why_not() -> str:
    """What this machine lacks to run one, "" where nothing is missing."""
    if ORTHANC is None or not PLUGIN.exists():
        return f"no Orthanc with DICOMweb; install it: {INSTALL}"
    if shutil.which("unshare") is None or shutil.which("nsenter") is None:
        return "no unshare or nsenter; install util-linux"
    probe = subprocess.run([*_UNSHARE, "true"], capture_output=True, check=False)
    if probe.returncode:
        return "no network namespace may be made here; run as root, or permit user namespaces"
    return ""


def skip_without_orthanc() -> None:
    """Skip the calling test in words where no Orthanc can run."""
    if reason := why_not():
        pytest.skip(reason)


class Namespace:
    """A network namespace with nothing but loopback, and the relays over its border.

    Args:
        folder: for sockets; kept short, because a socket's path has at most 107 bytes.
        inward: ports inside that are reached from here -> "", or certificate and key (`a.pem,a.key,`) to reach them
            by TLS. outward: port inside -> port on this side.
    """

    def __init__(self, folder: Path, *, inward: Mapping[int, str], outward: Mapping[int, int]) -> None:
        sockets = Path(subprocess.run(["mktemp", "-d", "/tmp/pacs.XXXXXX"], capture_output=True, text=True,
                                      check=True).stdout.strip())  # fmt: skip
        self._sockets, self.folder = sockets, folder
        inside = [f"unix:{sockets}/in{port}=tcp:127.0.0.1:{port}" for port in inward]
        inside += [f"tcp:127.0.0.1:{port}=unix:{sockets}/out{port}" for port in outward]
        kinds = {port: f"tls:{tls}" if tls else "tcp:" for port, tls in inward.items()}
        outside = [f"{kind}127.0.0.1:0=unix:{sockets}/in{port}" for port, kind in kinds.items()]
        outside += [f"unix:{sockets}/out{port}=tcp:127.0.0.1:{to}" for port, to in outward.items()]
        self._relays = [self._start([*_UNSHARE, sys.executable, str(RELAY), "--lo", *inside])]
        self._listening(self._relays[0])
        self._relays.append(self._start([sys.executable, str(RELAY), *outside]))
        self.ports = dict(zip(inward, self._listening(self._relays[1]), strict=True))

    def _start(self, command: list[str]) -> subprocess.Popen[str]:
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def _listening(self, relay: subprocess.Popen[str]) -> list[int]:
        assert relay.stdout is not None
        line = relay.stdout.readline()
        assert line, f"the relay did not start: exit code {relay.wait()}"
        return [int(port) for port in json.loads(line)]

    def command(self, arguments: Sequence[str]) -> list[str]:
        """`arguments`, to be run inside; nsenter becomes the command, so its pid is the command's."""
        user = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
        return ["nsenter", f"--target={self._relays[0].pid}", "--net", *user, "--", *arguments]

    def close(self) -> None:
        for relay in self._relays:
            relay.kill()
            relay.wait()
            for stream in (relay.stdin, relay.stdout):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()
        shutil.rmtree(self._sockets, ignore_errors=True)


class Orthanc:
    """One Orthanc, started by `with`; its storage and log lie below `folder`.

    Args:
        title: its AE title. tls: folder with ca.pem, pacs.pem and pacs.key: DICOM by TLS, and HTTPS; None: neither.
        user, password: HTTP Basic; None: no authentication.
        settings: further entries of Orthanc's configuration.
    """

    host = "127.0.0.1"
    DICOM, HTTP, RECEIVE = 4242, 8042, 11113

    def __init__(
        self, folder: Path, *, title: str = "PACS", tls: Path | None = None, user: str | None = None,
        password: str | None = None, settings: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.folder, self.title = folder, title
        self.receive_port = free_port()
        self._tls, self._user, self._password, self._settings = tls, user, password, settings or {}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        # Debian's Orthanc dies at its first HTTPS request (civetweb 1.15 with OpenSSL 3), so TLS ends before it, as it
        # does at a hospital's reverse proxy.
        proxy = f"{self._tls / 'pacs.pem'},{self._tls / 'pacs.key'}," if self._tls is not None else ""
        self.namespace = Namespace(
            self.folder, inward={self.DICOM: "", self.HTTP: proxy}, outward={self.RECEIVE: self.receive_port}
        )
        self.dicom_port, self.http_port = self.namespace.ports[self.DICOM], self.namespace.ports[self.HTTP]
        try:
            self._configure()
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        self.namespace.close()

    @property
    def url(self) -> str:
        """Of DICOMweb."""
        return f"{'https' if self._tls else 'http'}://localhost:{self.http_port}/dicom-web"

    def _configure(self) -> None:
        own = {"Name": self.title, "StorageDirectory": str(self.folder / "storage"),
               "IndexDirectory": str(self.folder / "storage"), "Plugins": [str(PLUGIN)]}  # fmt: skip
        http = {"HttpPort": self.HTTP, "RemoteAccessAllowed": False, "AuthenticationEnabled": self._user is not None,
                "RegisteredUsers": {self._user: self._password} if self._user else {}}  # fmt: skip
        dicom = {"DicomAet": self.title, "DicomPort": self.DICOM, "DicomCheckCalledAet": True,
                 "DicomAlwaysAllowEcho": False, "DicomAlwaysAllowStore": True, "DicomAlwaysAllowFind": False,
                 "DicomAlwaysAllowGet": False, "DicomAlwaysAllowMove": False, "UnknownSopClassAccepted": False,
                 "DicomScuTimeout": 10, "StableAge": 1, "DicomTlsEnabled": self._tls is not None}  # fmt: skip
        us = {"AET": "MAMMOFED", "Host": "127.0.0.1", "Port": self.RECEIVE, "AllowFind": True, "AllowMove": True,
              "AllowGet": True, "AllowEcho": True, "AllowStore": True,
              "UseDicomTls": self._tls is not None}  # fmt: skip
        if self._tls is not None:
            dicom |= {"DicomTlsCertificate": str(self._tls / "pacs.pem"),
                      "DicomTlsPrivateKey": str(self._tls / "pacs.key"),
                      "DicomTlsTrustedCertificates": str(self._tls / "ca.pem")}  # fmt: skip
        rest = {"DicomModalities": {"us": us}, "SaveJobs": False, "JobsHistorySize": 0, "Locale": "C.UTF-8",
                "DicomWeb": {"Enable": True, "EnableWado": False}}  # fmt: skip
        self._file = self.folder / "orthanc.json"
        self._file.write_text(json.dumps(own | http | dicom | rest | self._settings))

    def start(self) -> None:
        """Start it and wait until it answers."""
        command = self.namespace.command([str(ORTHANC), str(self._file)])
        with (self.folder / "orthanc.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            assert self._process.poll() is None, (self.folder / "orthanc.log").read_text()[-2000:]
            with contextlib.suppress(OSError):
                self.rest("system")
                return
            time.sleep(0.05)
        raise AssertionError("Orthanc does not answer: " + (self.folder / "orthanc.log").read_text()[-2000:])

    def kill(self) -> None:
        """SIGKILL, as a power cut."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def rest(self, path: str, data: bytes | None = None, *, method: str | None = None) -> Any:
        """One call of Orthanc's own REST API, for the tests' preparations."""
        import ssl

        scheme = "https" if self._tls else "http"
        request = urllib.request.Request(f"{scheme}://localhost:{self.http_port}/{path}", data, method=method)
        if self._user is not None:
            token = base64.b64encode(f"{self._user}:{self._password}".encode()).decode()
            request.add_header("Authorization", f"Basic {token}")
        context = ssl.create_default_context(cafile=self._tls / "ca.pem") if self._tls else None
        with urllib.request.urlopen(request, timeout=START_SECONDS, context=context) as answer:
            return json.loads(answer.read() or b"null")

    def store(self, *paths: Path) -> int:
        """Put files, or all files below folders, into it; how many it took as new."""
        files = [file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
        answers = [self.rest("instances", file.read_bytes()) for file in files if file.is_file()]
        return sum(answer["Status"] == "Success" for answer in answers)

    def instances(self) -> list[str]:
        """Orthanc's own ids of all objects that it has."""
        return list(self.rest("instances"))

    def remove(self, instance: str) -> None:
        """Delete one object."""
        self.rest(f"instances/{instance}", method="DELETE")

    def inside(self, arguments: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command on the other side of the border."""
        return subprocess.run(self.namespace.command(arguments), capture_output=True, text=True, check=False, **options)
