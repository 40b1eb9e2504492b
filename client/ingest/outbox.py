"""Results on their way to the PACS: a spool that survives a restart, and its C-STORE sender; called by the importer.

    <folder>/waiting/<number>-<name>.spool  to be sent, in the order of their numbers
    <folder>/failed/<number>-<name>.spool   refused by the PACS for good, with `<same>.json` saying why
    <folder>/arriving/, <folder>/lock       partial files; one process at a time

A spooled file is a DICOM file and behind it its SHA-256: a damaged result must not reach a patient's record.

What is put in is sent at least once: a crash between sending and removing sends it again, and a PACS takes an object
that it has as what it has (same SOPInstanceUID). Results carry real identities, for they go to a patient's record: the
folder is its owner's alone, and no message here says what is in it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydantic import Field
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom.presentation import build_context

from client.ingest.sources.associations import association, lost_when_closed, status_of
from client.ingest.sources.disk import FolderLock, make_folder, read_bounded
from client.ingest.sources.objects import SYNTAXES, DamagedError, is_uid, parse, read_meta, split_file, text, to_file
from client.ingest.sources.quiet import quiet_network
from client.ingest.sources.retry import Backoff, LostError
from client.ingest.sources.settings import Peer
from shared_model.errors import ConfigError, StorageError
from shared_model.imaging.header import NATIVE
from shared_model.private_files import sync_folder, write_private

MAX_OBJECT_BYTES = 256 << 20
MAX_WAITING = 100_000
_NAME = re.compile(r"\d{9}-[0-9a-f]{32}\.spool")
_MAX_CONTEXTS = 128  # of an association (PS3.8 9.3.2.2: odd numbers up to 255)
_DIGEST_BYTES = 32
_META_BYTES = 4096  # a file's meta group is shorter than 1 KB
_TAKEN = frozenset({0x0000, 0xB000, 0xB006, 0xB007})  # success; warnings: stored all the same (PS3.4 B.2.3)
_REFUSALS = {0x0122: "not_supported", 0x0124: "not_permitted"}  # PS3.7 C.5; the other failures mean `refused`

FAILED: dict[str, str] = {
    "not_supported": "the PACS does not take this kind of object; ask its administrator",
    "not_permitted": "the PACS does not permit us to store; ask its administrator",
    "refused": "the PACS found the object wrong",
    "damaged": "the file in the spool is damaged",
}
"""Reasons for which an object is not tried again."""


class OutboxTarget(Peer):
    """Where results go: a PACS that takes C-STORE. retries: within one sending; what stays is sent the next time."""

    retries: int = Field(default=5, ge=0, le=20)


@dataclass(frozen=True, kw_only=True)
class Sent:
    """What one sending did. waiting: still in the spool; lost: why the sending stopped, "" where it came to its end."""

    sent: int = 0
    failed: Mapping[str, int] = field(default_factory=dict)
    waiting: int = 0
    lost: str = ""


_Kind = tuple[str, str]  # SOP class, transfer syntax


class Outbox:
    """The spool; a context manager that holds the folder's lock.

    Raises:
        StorageError: another process works in it, or the disk refuses.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._waiting, self._failed, self._spool = folder / "waiting", folder / "failed", folder / "arriving"
        make_folder(folder)
        self._lock = FolderLock(folder)
        try:
            for path in (self._waiting, self._failed, self._spool):
                make_folder(path)
            for path in self._spool.iterdir():
                with contextlib.suppress(OSError):  # what cannot be thrown away is only a waste of room
                    path.unlink()
            known = [*self._names(self._waiting), *self._names(self._failed)]
            self._number = max((int(name[:9]) for name in known), default=0)
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    def put(self, dataset: Dataset, *, syntax: str = ExplicitVRLittleEndian) -> str:
        """Spool an object durably: when this returns, it will be sent. One that waits already, by its UID, is replaced.

        Args:
            syntax: transfer syntax in which its pixels are encoded.

        Returns:
            its name in the spool, which says nothing of the patient.

        Raises:
            ConfigError: no valid object. StorageError: the disk refuses, or too many are waiting.
        """
        uid = text(dataset, "SOPInstanceUID")
        if syntax not in SYNTAXES or not is_uid(uid) or not is_uid(text(dataset, "SOPClassUID")):
            raise ConfigError("an object that cannot be sent",
                              expected="SOPClassUID, SOPInstanceUID and a known transfer syntax")  # fmt: skip
        try:
            data = to_file(dataset, syntax)
        except DamagedError:
            raise ConfigError("an object that cannot be written as DICOM", expected="a valid data set") from None
        if len(data) > MAX_OBJECT_BYTES:
            raise ConfigError("an object that is too large to send", expected=f"at most {MAX_OBJECT_BYTES} bytes")
        token = hashlib.sha256(uid.encode()).hexdigest()[:32]
        names = self._names(self._waiting)
        name = next((name for name in names if name[10:42] == token), None)
        if name is None:
            if len(names) >= MAX_WAITING:
                raise StorageError(f"{self.folder} is full", found=f"{len(names)} objects waiting",
                                   remedy="see why the PACS takes nothing")  # fmt: skip
            self._number += 1
            name = f"{self._number:09d}-{token}.spool"
        write_private(self._waiting / name, data + hashlib.sha256(data).digest(), spool=self._spool)
        return name

    def waiting(self) -> list[str]:
        """Names of what is to be sent, in order."""
        return self._names(self._waiting)

    def failed(self) -> dict[str, str]:
        """Name -> reason of FAILED of what the PACS refused for good."""
        return {name: self._reason(name) for name in self._names(self._failed)}

    def retry_failed(self) -> int:
        """Put what failed back among what is waiting; returns how many."""
        names = self._names(self._failed)
        for name in names:
            self._move(self._failed / name, self._waiting / name)
            (self._failed / name).with_suffix(".json").unlink(missing_ok=True)
        return len(names)

    def send(self, target: OutboxTarget, *, backoff: Backoff | None = None) -> Sent:
        """Send what is waiting, in order; what cannot be sent now stays and is sent the next time.

        Raises:
            SourceError: the PACS rejects us for good. StorageError: the disk refuses. ConfigError: TLS files.
        """
        tries, done = backoff or Backoff(target.retries), Counter[str]()
        lost = ""
        with quiet_network():
            try:
                tries.run(lambda: self._send_all(target, done))
            except LostError as error:
                lost = error.words
        sent = done.pop("sent", 0)
        return Sent(sent=sent, failed=dict(done), waiting=len(self.waiting()), lost=lost)

    # --- sending ---

    def _send_all(self, target: OutboxTarget, done: Counter[str]) -> None:
        """One association after another, as many kinds of object as fit into each, until nothing is waiting."""
        while names := self.waiting():
            by_kind = self._first_kinds(names, done)
            if not by_kind:
                continue  # what there was is damaged and has moved
            with association(target, [build_context(sop_class, syntax) for sop_class, syntax in by_kind]) as opened:
                accepted = {(str(context.abstract_syntax), str(syntax)) for context in opened.accepted_contexts
                            for syntax in context.transfer_syntax}  # fmt: skip
                for name in sorted(name for some in by_kind.values() for name in some):
                    self._send_one(opened, name, accepted, done)

    def _first_kinds(self, names: list[str], done: Counter[str]) -> dict[_Kind, list[str]]:
        """(SOP class, transfer syntax) -> names, for as many kinds as an association has contexts.

        One syntax a context: with more, the PACS would choose one of them for all objects of the class. Native objects
        are offered in both native syntaxes, of which every PACS has one; pynetdicom converts.
        """
        kinds: dict[_Kind, list[str]] = {}
        for name in names:
            kind = self._kind(self._waiting / name)
            if kind is None:
                self._give_up(name, "damaged", done)
                continue
            offered = [kind, *((kind[0], syntax) for syntax in NATIVE - {kind[1]} if kind[1] in NATIVE)]
            if len(kinds.keys() | set(offered)) > _MAX_CONTEXTS:
                continue  # in the next association
            for offer in offered:
                kinds.setdefault(offer, [])
            kinds[kind].append(name)
        return kinds

    def _kind(self, path: Path) -> _Kind | None:
        try:
            with path.open("rb") as stream:
                meta, _ = read_meta(stream.read(_META_BYTES))
        except OSError as error:
            raise StorageError(f"{self._waiting} cannot be read: {error.strerror}") from None
        except DamagedError:
            return None
        kind = text(meta, "MediaStorageSOPClassUID"), text(meta, "TransferSyntaxUID")
        return kind if is_uid(kind[0]) and kind[1] in SYNTAXES else None

    def _send_one(self, opened: Any, name: str, accepted: set[_Kind], done: Counter[str]) -> None:
        dataset = self._dataset(self._waiting / name)
        if dataset is None:
            self._give_up(name, "damaged", done)
            return
        sop_class, syntax = str(dataset.SOPClassUID), str(dataset.file_meta.TransferSyntaxUID)
        if not accepted & {(sop_class, possible) for possible in (NATIVE if syntax in NATIVE else {syntax})}:
            self._give_up(name, "not_supported", done)
            return
        with lost_when_closed():
            status = status_of(opened.send_c_store(dataset))
        if status in _TAKEN:
            self._remove(self._waiting / name)
            done["sent"] += 1
        elif status & 0xFF00 == 0xA700:
            raise LostError("the PACS is out of resources")
        else:
            self._give_up(name, _REFUSALS.get(status, "refused"), done, status=status)

    def _dataset(self, path: Path) -> Dataset | None:
        spooled = read_bounded(path, MAX_OBJECT_BYTES + _DIGEST_BYTES) or b""
        data, digest = spooled[:-_DIGEST_BYTES], spooled[-_DIGEST_BYTES:]
        if hashlib.sha256(data).digest() != digest:
            return None
        try:
            syntax, encoded = split_file(data)
            dataset = parse(encoded, syntax) if syntax in SYNTAXES else None
        except DamagedError:
            return None
        if dataset is None or not is_uid(text(dataset, "SOPClassUID")) or not is_uid(text(dataset, "SOPInstanceUID")):
            return None
        return dataset

    # --- the folder ---

    def _give_up(self, name: str, reason: str, done: Counter[str], *, status: int | None = None) -> None:
        """Move an object to failed/, its reason first: what lies there is never without one."""
        why = json.dumps({"reason": reason, "status": status}).encode()
        write_private((self._failed / name).with_suffix(".json"), why, spool=self._spool)
        self._move(self._waiting / name, self._failed / name)
        done[reason] += 1

    def _reason(self, name: str) -> str:
        data = read_bounded((self._failed / name).with_suffix(".json"), 4096)
        try:
            reason = str(json.loads(data or b"{}").get("reason"))
        except (ValueError, AttributeError):
            reason = ""
        return reason if reason in FAILED else "refused"

    def _move(self, path: Path, to: Path) -> None:
        try:
            path.replace(to)
            sync_folder(to.parent)
            sync_folder(path.parent)
        except OSError as error:
            raise StorageError(f"{self.folder} could not be written: {error.strerror}") from None

    def _remove(self, path: Path) -> None:
        try:
            path.unlink()
            sync_folder(path.parent)
        except OSError as error:
            raise StorageError(f"{self.folder} could not be written: {error.strerror}") from None

    def _names(self, folder: Path) -> list[str]:
        return sorted(path.name for path in folder.iterdir() if _NAME.fullmatch(path.name))
