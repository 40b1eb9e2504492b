"""The durable list of everything that left a site: `egress.jsonl` in the trainer's state; for gate and `site egress`.

It is an audit log (`shared_model.audit`: append-only, hash-chained, one line an entry, on the disk before anything is
sent) with a key of its own, so `mammofed audit verify` checks it. Its kinds:

* `released`: one reply, with each of its values (`egress_values`); a reply of many tensors takes several lines.
* `repeated`: the same bytes again.
* `continues`: the first line of a new file, which names the last hash of the file before it.

How it stays bounded. Answers to a study's requests stand in full, each once. Words of errors, descriptions, heads of
audit logs and repetitions stand one by one up to `LISTED_AN_HOUR` of each an hour; the next line counts the others. So
a courier that asks all day cannot fill the disk. At `MOST_BYTES` a file is put aside under the next number; none is
ever removed.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from client.privacy.egress_values import Value, from_text, to_text
from shared_model.audit import AuditLog, Entry
from shared_model.audit.entries import Value as Field
from shared_model.audit.entries import read_entries
from shared_model.errors import AuditError, StorageError
from shared_model.private_files import sync_folder
from shared_model.signing import SigningKey

LOG_FILE, KEY_FILE = "egress.jsonl", "egress.key"
RELEASED, REPEATED, CONTINUES = "released", "repeated", "continues"
MOST_BYTES: Final = 8 << 20  # of a file: read and checked at every start, some 0.3 s
LISTED_AN_HOUR: Final = 12
HOUR_S: Final = 3600.0
VALUES_BYTES: Final = 48 << 10  # of values in one line; an entry holds 64 KiB


class EgressLog:
    """The list of one site; safe between threads. After a disk that refused, it is opened, and checked, again.

    Args:
        state: the trainer's own folder, claimed by this process.
        owner: name of the party.
        clock: seconds that only grow.

    Raises:
        StorageError: the list is gone, or cannot be used.
        AuditError: it was changed, or belongs to another party.
    """

    def __init__(self, state: Path, *, owner: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._state, self._owner, self._clock = state, owner, clock
        self._mutex = threading.RLock()
        self._log: AuditLog | None = None
        self._listed: set[str] = set()
        self._last: dict[str, str] = {}
        self._times: dict[str, deque[float]] = {}
        self._unlisted: Counter[str] = Counter()
        with self._opened():
            pass

    def close(self) -> None:
        """Let another process write the list; what was only counted so far is written down, if the disk takes it."""
        with self._mutex:
            if self._log is None:
                return
            if self._unlisted:
                with contextlib.suppress(StorageError, AuditError):
                    self._append(self._log, REPEATED, {"reply": "counted"})
            self._log.close()
            self._log = None

    def once(self, values: Sequence[Value], *, sha256: str, size: int, **about: Field) -> None:
        """Put a reply to a study's request on the list: in full, or as a repetition when the same bytes are on it.

        Args:
            values: everything in it.
            sha256, size: of the reply's bytes.
            about: what it answers, and for whom.

        Raises:
            StorageError, AuditError: the list cannot be written; the reply must not be sent.
        """
        with self._opened() as entries:
            if sha256 in self._listed:
                if self._in_turn(REPEATED):
                    self._append(entries, REPEATED, {**about, "reply_sha256": sha256, "bytes": size})
                return
            self._in_full(entries, values, {**about, "reply_sha256": sha256, "bytes": size})
            self._listed.add(sha256)

    def often(self, values: Sequence[Value], *, kind: str, sha256: str, size: int, **about: Field) -> None:
        """Put an answer without a patient's value on the list, or count it: when it says what the last one of its kind
        said, or when the hour has had its share.

        Raises:
            StorageError, AuditError: as :meth:`once`.
        """
        with self._opened() as entries:
            if self._last.get(kind) == sha256:
                self._unlisted[kind] += 1
            elif self._in_turn(kind):
                self._in_full(entries, values, {**about, "reply_sha256": sha256, "bytes": size})
                self._last[kind] = sha256

    def _in_full(self, entries: AuditLog, values: Sequence[Value], about: dict[str, Field]) -> None:
        parts = list(_parts(values))
        for number, part in enumerate(parts, start=1):
            self._append(entries, RELEASED, {**about, "part": number, "parts": len(parts), "values": to_text(part)})

    def _in_turn(self, kind: str) -> bool:
        """Whether one more of a kind stands by itself; else it is counted."""
        now, times = self._clock(), self._times.setdefault(kind, deque())
        while times and now - times[0] >= HOUR_S:
            times.popleft()
        if len(times) >= LISTED_AN_HOUR:
            self._unlisted[kind] += 1
            return False
        times.append(now)
        return True

    def _append(self, entries: AuditLog, kind: str, fields: dict[str, Field]) -> None:
        counted = {f"unlisted_{name}": count for name, count in sorted(self._unlisted.items())}
        entries.append(kind, **fields, **counted)
        self._unlisted.clear()

    # --- the files ---

    @contextlib.contextmanager
    def _opened(self) -> Iterator[AuditLog]:
        with self._mutex:
            try:
                if self._log is not None and self._path.stat().st_size >= MOST_BYTES:
                    self._put_aside()
                if self._log is None:
                    self._log = self._open()
                yield self._log
            except (StorageError, OSError) as error:
                if self._log is not None:
                    self._log.close()
                    self._log = None
                if isinstance(error, OSError):
                    raise StorageError(
                        "the egress list cannot be used", found=error.strerror,
                        remedy="check the site's disk; nothing leaves until it is well",
                    ) from None  # fmt: skip
                raise

    @property
    def _path(self) -> Path:
        return self._state / LOG_FILE

    def _open(self) -> AuditLog:
        key, earlier = self._state / KEY_FILE, files_of(self._state)[:-1]
        if not self._path.exists() and not earlier and key.exists():
            raise StorageError(
                "the list of what left this site is gone", expected=LOG_FILE,
                remedy=f"restore it from its backup, or put {KEY_FILE} aside to begin a new one",
            )  # fmt: skip
        born = not (self._path.exists() or earlier or key.exists())
        signing = SigningKey.create(key) if born else SigningKey.load(key)
        entries = AuditLog(self._path, owner=self._owner, key=signing)
        try:
            if entries.sequence == 1 and earlier:
                self._append(entries, CONTINUES, _end_of(earlier[-1]))
            self._listed |= {str(entry.fields["reply_sha256"]) for entry in entries.entries() if entry.kind == RELEASED}
        except BaseException:
            entries.close()
            raise
        return entries

    def _put_aside(self) -> None:
        """Move the file under the next number; the next one begins with its last hash."""
        assert self._log is not None
        self._log.close()
        self._log = None
        number = len(files_of(self._state)[:-1]) + 1
        self._path.rename(self._state / f"egress-{number:06d}.jsonl")
        sync_folder(self._state)


def files_of(state: Path) -> list[Path]:
    """The files of a list, oldest first; the last one is the one that is written."""
    return [*sorted(state.glob("egress-[0-9][0-9][0-9][0-9][0-9][0-9].jsonl")), state / LOG_FILE]


def read_list(state: Path) -> Iterator[tuple[Entry, list[Value]]]:
    """All entries with their values, oldest first, each line checked; also while a trainer writes.

    Raises:
        AuditError: a line was changed, or a file does not go on where the one before it ended.
        StorageError: a file cannot be read.
    """
    ended = last = ""
    for path in files_of(state):
        ended = last
        try:
            stream = path.open("rb")
        except FileNotFoundError:
            continue  # nothing left yet, or it is being put aside just now
        except OSError as error:
            raise StorageError("the egress list cannot be read", found=error.strerror) from None
        with stream:
            try:
                for entry in read_entries(stream):
                    if entry.kind == CONTINUES and entry.fields.get("after_sha256") != ended:
                        raise AuditError(f"{path.name} does not go on where the file before it ended",
                                         line=entry.sequence)  # fmt: skip
                    last = entry.sha256
                    yield entry, _values(entry)
            except AuditError as error:
                if path.name == LOG_FILE and "not ended" in error.problem:
                    return  # a line that the trainer is about to finish
                raise


def _values(entry: Entry) -> list[Value]:
    if entry.kind != RELEASED:
        return []
    try:
        return from_text(str(entry.fields["values"]))
    except (ValueError, KeyError, RecursionError):
        raise AuditError("values that cannot be read", line=entry.sequence) from None


def _parts(values: Sequence[Value]) -> Iterator[list[Value]]:
    """Values in pieces that fit into a line each, at least one."""
    part: list[Value] = []
    for value in values:
        if part and len(to_text([*part, value])) > VALUES_BYTES:
            yield part
            part = []
        part.append(value)
    yield part


def _end_of(path: Path) -> dict[str, Field]:
    last = None
    with path.open("rb") as stream:
        for entry in read_entries(stream):
            last = entry
    if last is None:
        raise AuditError(f"{path.name} is empty")
    return {"after": path.name, "after_sequence": last.sequence, "after_sha256": last.sha256}
