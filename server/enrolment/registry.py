"""The coordinator's durable record of who is invited, enrolled, confirmed and revoked; one SQLite file.

A member goes through these states; what is not in the table is refused:

    (none)     --redeem-->  pending     --confirm-->  confirmed  --revoke-->  revoked
    pending    --revoke-->  revoked     (wrong words over the phone)
    revoked    --redeem-->  pending     (a new invitation, with new keys)

Several processes use it at once (gateway, control service, the operator's commands): each step is one transaction, and
`version` tells cheaply whether anybody has changed anything. Times are seconds since 1970.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cryptography import x509

from shared_model.certificates import REFUSALS, Member, Role, check_window, der, load_certificate, member_of
from shared_model.errors import CertificateError, EnrolmentError, StorageError
from shared_model.private_files import make_private_folder

SCHEMA_VERSION = 1
BUSY_S = 5.0  # the longest that a writer waits for another; steps take milliseconds
MAX_MEMBERS = 1000

_SCHEMA = """
CREATE TABLE IF NOT EXISTS invites (
    sha256 TEXT PRIMARY KEY, site TEXT NOT NULL, role TEXT NOT NULL, created REAL NOT NULL, expires REAL NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('open', 'used', 'withdrawn')), request TEXT);
CREATE UNIQUE INDEX IF NOT EXISTS one_open_invite ON invites (site) WHERE state = 'open';
CREATE TABLE IF NOT EXISTS members (
    site TEXT PRIMARY KEY, role TEXT NOT NULL, state TEXT NOT NULL, node BLOB NOT NULL, tls BLOB NOT NULL,
    csr BLOB NOT NULL, since REAL NOT NULL, reason TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS keys (sha256 TEXT PRIMARY KEY, site TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS certificates (
    sha256 TEXT PRIMARY KEY, site TEXT NOT NULL, tls TEXT NOT NULL, der BLOB NOT NULL, issued REAL NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('valid', 'superseded', 'revoked')));
"""


class MemberState(StrEnum):
    """Where a member is."""

    PENDING = "pending"
    CONFIRMED = "confirmed"
    REVOKED = "revoked"


@dataclass(frozen=True, kw_only=True)
class Enrolled:
    """A member as the registry has it. node, tls: public keys (SPKI, DER) that it enrolled with."""

    member: Member
    state: MemberState
    node: bytes
    tls: bytes
    csr: bytes
    since: float
    reason: str


@dataclass(frozen=True, kw_only=True)
class Admitted:
    """Whom a certificate lets in. node: the one node key that may speak through it (SPKI, DER)."""

    member: Member
    node: bytes
    not_after: float


@dataclass(frozen=True, kw_only=True)
class Issued:
    """A certificate on record. state: `valid`, `superseded` or `revoked`."""

    site: str
    state: str
    certificate: x509.Certificate


class Registry:
    """The registry in `folder`; a context manager, safe between threads and processes of one machine.

    Raises:
        StorageError: the disk refuses, or the file is damaged or of another schema.
    """

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.time) -> None:
        self.path = folder / "registry.sqlite"
        self._clock, self._lock = clock, threading.RLock()
        make_private_folder(folder)
        with self._in_words():
            # SQLite's own file would be 0644. Never opened here when it is there: closing any handle of a file drops
            # all POSIX locks that this process has on it (fcntl(2)), and SQLite in another process would then take
            # itself for the last user and remove the log that we write (sqlite.org/howtocorrupt.html, 2.2).
            with contextlib.suppress(FileExistsError):
                os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            self._db = sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
            try:
                self._prepare()
            except BaseException:
                self._db.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def version(self) -> tuple[int, int]:
        """Changes whenever the record has been changed, by this process or by another one."""
        with self._lock, self._in_words():
            return int(self._db.execute("PRAGMA data_version").fetchone()[0]), self._db.total_changes

    # --- invitations ---

    def invite(self, member: Member, sha256: str, *, expires: float) -> None:
        """Record an invitation; an older one for the same name, not used yet, is withdrawn.

        Raises:
            EnrolmentError: the name is taken by a member that is not revoked.
        """
        with self._transaction():
            there = self._member(member.site)
            if there is not None and there.state is not MemberState.REVOKED:
                raise EnrolmentError(f"{member.site} is enrolled already", found=str(there.state),
                                     remedy=f"revoke {member.site} first if it has lost its keys")  # fmt: skip
            if there is None and self._one("SELECT count(*) FROM members")[0] >= MAX_MEMBERS:
                raise EnrolmentError("the registry is full", expected=f"at most {MAX_MEMBERS} members")
            self._withdraw(member.site)
            self._db.execute("INSERT INTO invites VALUES (?, ?, ?, ?, ?, 'open', NULL)",
                             (sha256, member.site, member.role, self._clock(), expires))  # fmt: skip

    def invited(self, sha256: str) -> Member:
        """Whom an invitation is for, used or not.

        Raises:
            EnrolmentError: unknown or withdrawn.
        """
        with self._lock:
            row = self._one("SELECT site, role FROM invites WHERE sha256 = ? AND state != 'withdrawn'", sha256)
        if row is None:
            raise EnrolmentError("the invitation is not known or has been withdrawn",
                                 remedy="ask the coordinator for a new one")  # fmt: skip
        return Member(row[0], Role(row[1]))

    def redeem(self, sha256: str, *, request: bytes, node: bytes, tls: bytes, csr: bytes) -> Enrolled:
        """Use an invitation up, for one set of keys. Again with the same request: the member as it is by now.

        Raises:
            EnrolmentError: expired, used with other keys, or keys that somebody has or had.
        """
        digest = hashlib.sha256(request).hexdigest()
        with self._transaction():
            member = self.invited(sha256)
            state, expires, used_by = self._one("SELECT state, expires, request FROM invites WHERE sha256 = ?", sha256)
            there = self._member(member.site)
            if state == "used":
                if used_by != digest or there is None or there.csr != csr:
                    raise EnrolmentError(
                        "the invitation has been used with other keys",
                        remedy="if that was not you, call the coordinator at once: somebody else has used it",
                    )
                return there
            if self._clock() >= expires:
                raise EnrolmentError("the invitation has run out", remedy="ask the coordinator for a new one")
            if there is not None and there.state is not MemberState.REVOKED:
                raise EnrolmentError(f"{member.site} is enrolled already", found=str(there.state))
            self._take_keys(member.site, node, tls, fresh=True)
            self._db.execute("UPDATE invites SET state = 'used', request = ? WHERE sha256 = ?", (digest, sha256))
            row = (member.site, member.role, MemberState.PENDING, node, tls, csr, self._clock())
            self._db.execute("INSERT OR REPLACE INTO members VALUES (?, ?, ?, ?, ?, ?, ?, '')", row)
            return self._known(member.site)

    # --- members ---

    def members(self) -> list[Enrolled]:
        """All members in the order of their names."""
        with self._lock, self._in_words():
            rows = self._db.execute("SELECT site FROM members ORDER BY site").fetchall()
            return [self._known(site) for (site,) in rows]

    def member(self, site: str) -> Enrolled:
        """One member.

        Raises:
            EnrolmentError: there is none of that name.
        """
        with self._lock:
            return self._known(site)

    def confirm(self, site: str, *, node: bytes, tls: bytes) -> None:
        """Confirm a member whose keys a human has compared; exactly those keys. Again: nothing happens.

        Raises:
            EnrolmentError: not pending, or with other keys by now.
        """
        with self._transaction():
            there = self._known(site)
            if (there.node, there.tls) != (node, tls):
                raise EnrolmentError(f"{site} has other keys by now", remedy="compare the fingerprints again")
            if there.state is MemberState.REVOKED:
                raise EnrolmentError(f"{site} is revoked", remedy="send it a new invitation")
            if there.state is MemberState.PENDING:
                self._db.execute("UPDATE members SET state = ?, since = ? WHERE site = ?",
                                 (MemberState.CONFIRMED, self._clock(), site))  # fmt: skip

    def revoke(self, site: str, *, reason: str) -> None:
        """Shut a member and all its certificates out, from the next moment on. Again: nothing happens.

        Raises:
            EnrolmentError: there is none of that name, not even an invitation.
        """
        with self._transaction():
            withdrawn = self._withdraw(site)
            if self._member(site) is None:
                if not withdrawn:
                    self._known(site)  # raises
                return
            self._db.execute("UPDATE members SET state = ?, since = ?, reason = ? WHERE site = ? AND state != ?",
                             (MemberState.REVOKED, self._clock(), reason, site, MemberState.REVOKED))  # fmt: skip
            self._db.execute("UPDATE certificates SET state = 'revoked' WHERE site = ?", (site,))

    # --- certificates ---

    def certificate_for(
        self, site: str, tls: bytes, make: Callable[[], x509.Certificate], *, asked_with: bytes | None = None
    ) -> x509.Certificate:
        """The member's certificate for one TLS key: the one that there is, or a new one, recorded before it is told.

        A key gets one certificate, ever: asking again never makes an old one live longer.

        Args:
            tls: public key (SPKI, DER).
            make: signs a new certificate.
            asked_with: DER of the certificate with which the member asks; that one and the newest stay valid.

        Raises:
            CertificateError: the member is not confirmed, or asks with one that does not admit it.
            EnrolmentError: the key is or was somebody else's.
        """
        with self._transaction():
            there = self._known(site)
            if there.state is not MemberState.CONFIRMED:
                raise _refusal("revoked" if there.state is MemberState.REVOKED else "unconfirmed")
            if asked_with is not None and self.admit(asked_with).member != there.member:
                raise _refusal("unknown")
            digest = hashlib.sha256(tls).hexdigest()
            rows = self._db.execute("SELECT der, state FROM certificates WHERE site = ? AND tls = ?", (site, digest))
            for found, state in rows.fetchall():
                if state != "valid":
                    raise _refusal(state)
                certificate = load_certificate(found)
                check_window(certificate, self._clock())
                return certificate
            self._take_keys(site, there.node, tls, fresh=False)
            certificate = make()
            encoded = der(certificate)
            kept = hashlib.sha256(asked_with or b"").hexdigest()
            self._db.execute("UPDATE certificates SET state = 'superseded' WHERE site = ? AND state = 'valid' "
                             "AND sha256 != ?", (site, kept))  # fmt: skip
            self._db.execute("INSERT INTO certificates VALUES (?, ?, ?, ?, ?, 'valid')",
                             (hashlib.sha256(encoded).hexdigest(), site, digest, encoded, self._clock()))  # fmt: skip
            return certificate

    def issued(self) -> list[Issued]:
        """All certificates that were ever issued, oldest first; for a revocation list and for doctor."""
        with self._lock, self._in_words():
            rows = self._db.execute("SELECT site, state, der FROM certificates ORDER BY issued, sha256").fetchall()
        return [Issued(site=site, state=state, certificate=load_certificate(found)) for site, state, found in rows]

    def admit(self, certificate: bytes) -> Admitted:
        """Whom a certificate (DER, as TLS has verified it) lets in right now.

        Raises:
            CertificateError: nobody; its reason is one of REFUSALS.
            StorageError: the record cannot be read; nobody is let in.
        """
        parsed = load_certificate(certificate)
        with self._lock:
            row = self._one("SELECT site, state FROM certificates WHERE sha256 = ?",
                            hashlib.sha256(certificate).hexdigest())  # fmt: skip
            there = self._member(row[0]) if row else None
        if row is None or there is None:
            raise _refusal("unknown")
        if row[1] == "revoked" or there.state is MemberState.REVOKED:
            raise _refusal("revoked")
        if there.state is not MemberState.CONFIRMED:
            raise _refusal("unconfirmed")
        if row[1] != "valid":
            raise _refusal("superseded")
        if member_of(parsed) != there.member:  # the record was tampered with: our CA does not sign such a thing
            raise _refusal("unknown")
        check_window(parsed, self._clock())
        return Admitted(member=there.member, node=there.node, not_after=parsed.not_valid_after_utc.timestamp())

    # --- inside ---

    def _prepare(self) -> None:
        self._db.execute("PRAGMA journal_mode = WAL")  # readers, such as the gateway, never wait for a writer
        self._db.execute("PRAGMA synchronous = FULL")
        (version,) = self._one("PRAGMA user_version")
        if version not in (0, SCHEMA_VERSION):
            raise StorageError(f"{self.path} is of another schema", found=version, expected=SCHEMA_VERSION,
                               remedy="use the release that made it")  # fmt: skip
        if version == 0:
            self._db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")

    def _member(self, site: str) -> Enrolled | None:
        row = self._one("SELECT site, role, state, node, tls, csr, since, reason FROM members WHERE site = ?", site)
        if row is None:
            return None
        name, role, state, node, tls, csr, since, reason = row
        return Enrolled(member=Member(name, Role(role)), state=MemberState(state), node=node, tls=tls, csr=csr,
                        since=since, reason=reason)  # fmt: skip

    def _known(self, site: str) -> Enrolled:
        there = self._member(site)
        if there is None:
            raise EnrolmentError("there is no member of that name", found=site[:63],
                                 remedy="see `mammofed server status` for their names")  # fmt: skip
        return there

    def _withdraw(self, site: str) -> int:
        return self._db.execute(
            "UPDATE invites SET state = 'withdrawn' WHERE site = ? AND state = 'open'", (site,)
        ).rowcount

    def _take_keys(self, site: str, node: bytes, tls: bytes, *, fresh: bool) -> None:
        """Note keys as this site's for ever: a key names one site, and a revoked key never comes back.

        Args:
            fresh: no key may be known, not even as this site's own.
        """
        for key in {node, tls} if fresh else {tls}:
            digest = hashlib.sha256(key).hexdigest()
            owner = self._one("SELECT site FROM keys WHERE sha256 = ?", digest)
            if owner is not None and (fresh or owner[0] != site):
                raise EnrolmentError("a key of this request is or was in use", expected="new keys of the site's own",
                                     remedy="make new keys in an empty folder")  # fmt: skip
            self._db.execute("INSERT OR IGNORE INTO keys VALUES (?, ?)", (digest, site))

    def _one(self, query: str, *values: object) -> Any:
        with self._in_words():
            return self._db.execute(query, values).fetchone()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock, self._in_words():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:  # whatever happened inside, half a step must not stay
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _in_words(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise StorageError(f"cannot use {self.path}: {error}",
                               remedy="make room on the disk or free the file, then try again") from None  # fmt: skip
        except sqlite3.Error as error:
            raise StorageError(f"{self.path} is damaged: {error}", remedy="restore it from its backup") from None
        except OSError as error:
            raise StorageError(f"cannot use {self.path}: {error.strerror}", remedy="check its permissions") from None


def _refusal(reason: str) -> CertificateError:
    return CertificateError("the certificate does not admit its holder", reason=reason, found=reason,
                            remedy=REFUSALS[reason])  # fmt: skip
