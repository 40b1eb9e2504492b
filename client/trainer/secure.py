"""A site's part in secure sums: keeps values until they are masked, and takes each step once; called by the service.

    <state>/secure/<study>/<what>-<round>-<asked>.f32            the values, until they were summed
    <state>/secure/<study>/<what>-<round>-<asked>-<attempt>.sum  a half-done sum, with this site's secrets
    <state>/secure/<study>/<what>-<round>-<asked>.revealed       in which attempt these values were summed

Every file is for its owner alone. State is on the disk before a reply leaves; a repeated step gets the same bytes, and
values that this site helped to unmask are summed with nobody again.
"""

from __future__ import annotations

import contextlib
import os
import re
import struct
import time
from pathlib import Path
from typing import Final, get_args

import numpy as np
from numpy.typing import NDArray

from client.trainer.explore import counts_for_sum
from client.trainer.peers import read_peers
from client.trainer.site import Site, study_folder
from shared_model.errors import ConfigError, MessageError, PrivacyError, ProtocolError, StorageError
from shared_model.messages import MASKED, Arrays, Frame, SecureSumReply, SecureSumRequest, SumStep, encode
from shared_model.phases import told
from shared_model.private_files import make_private_folder, read_private, remove_private, write_private
from shared_model.protocol import Protocol
from shared_model.secagg import Site as SumSite
from shared_model.secagg.kept import MAX_KEPT_BYTES
from shared_model.secagg.session import LEAST_SITES, MAX_WORDS
from shared_model.secagg.terms import COUNTS, check_terms, quantities, subject_of
from shared_model.signing import SigningKey

MAX_VECTOR_BYTES: Final = 4 * MAX_WORDS
_STEPS: Final = get_args(SumStep)
_MARK: Final = b"mammofed-sum-1\0\0"
_TIMES: Final = struct.Struct(f"<{len(_STEPS)}q")  # milliseconds of each step, -1: not taken yet
_OLD: Final = re.compile(r"[a-z0-9_-]+-(\d{6})-\d{2}(?:\.f32|-\d{5}\.sum)")

Vector = NDArray[np.float32]


class SumFiles:
    """The files of one study's sums at one site. folder: made when the first is written.

    `asked` is the attempt number of the request that brought the values forth; 0 where there is one only.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def make_room(self, what: str, round_number: int, asked: int, *, size: int) -> None:
        """See that there are `size` bytes for values before anything is charged; forget earlier rounds' files.

        Raises:
            StorageError: disk full or not writable.
        """
        make_private_folder(self._folder)
        self._forget_before(round_number)
        temporary = self._values(what, round_number, asked).with_suffix(".room")
        try:
            with temporary.open("wb") as stream:
                os.posix_fallocate(stream.fileno(), 0, max(size, 1))
        except OSError as error:
            raise StorageError("there is no room for the update; nothing was charged or trained", found=error.strerror,
                               expected=f"{size} bytes free",
                               remedy="make room on the site's disk and repeat the round") from None  # fmt: skip
        finally:  # given back: the file that follows has this size, and is there whole or not at all
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def keep(self, what: str, round_number: int, asked: int, vector: Vector) -> None:
        """Keep values durably, in place of those of an attempt that was cut short.

        Raises:
            StorageError: disk full or not writable; nothing must be sent then.
        """
        make_private_folder(self._folder)
        write_private(self._values(what, round_number, asked), vector.astype("<f4").tobytes())

    def has(self, request: SecureSumRequest) -> bool:
        """Whether values are kept that a request wants summed."""
        return self._values(request.what, request.round, request.asked).exists()

    def values(self, request: SecureSumRequest) -> Vector:
        """The kept values that a request wants summed, float32.

        Raises:
            PrivacyError: there are none: they were never asked for, or summed already.
            StorageError: they cannot be read back.
        """
        path = self._values(request.what, request.round, request.asked)
        if not path.exists():
            raise PrivacyError("this site keeps no values to be summed for this round and attempt",
                               found=f"{request.what}, round {request.round}, attempt {request.asked}",
                               remedy="the coordinator asks for training again, under the next number")  # fmt: skip
        return np.frombuffer(read_private(path, limit=MAX_VECTOR_BYTES), dtype="<f4")

    def revealed(self, request: SecureSumRequest, *, fresh: bool) -> set[bytes]:
        """In which attempts this site has helped to unmask a sum of these values: one at most.

        Two sums over almost the same sites differ by one site's values, also if both were begun before one was opened.

        Args:
            fresh: whether each training of a round draws noise of its own, so that `asked` tells values apart;
                without, a round's are the same whenever it is trained.
        """
        asked = f"{request.asked:02d}" if fresh else "*"
        marks = self._folder.glob(f"{request.what}-{request.round:06d}-{asked}.revealed")
        return {read_private(mark) for mark in marks}

    def reveal(self, request: SecureSumRequest) -> None:
        """Note that it will, before its share leaves; the values have then done their work."""
        write_private(self._mark(request), _attempt(request))
        remove_private(self._values(request.what, request.round, request.asked))

    def read(self, request: SecureSumRequest) -> bytes | None:
        """The half-done sum of a request; None before its first step."""
        return self._kept(request)[1]

    def write(self, request: SecureSumRequest, data: bytes, *, seconds: float) -> float:
        """Keep the half-done sum durably, and beside it the time of each step, so that a repeated step says the same.

        Returns:
            seconds of the request's step: those of its first time.

        Raises:
            StorageError: disk full or not writable; nothing must be sent then.
        """
        make_private_folder(self._folder)
        times, step = list(self._kept(request)[0]), _STEPS.index(request.step)
        times[step] = times[step] if times[step] >= 0 else round(1000 * seconds)
        write_private(self._sum(request), _MARK + _TIMES.pack(*times) + data)
        return times[step] / 1000

    def _kept(self, request: SecureSumRequest) -> tuple[tuple[int, ...], bytes | None]:
        path, none = self._sum(request), (-1,) * len(_STEPS)
        if not path.exists():
            return none, None
        data = read_private(path, limit=MAX_KEPT_BYTES + MAX_VECTOR_BYTES)
        if not data.startswith(_MARK):  # of a release that noted no times
            return none, data
        start = len(_MARK) + _TIMES.size
        return _TIMES.unpack(data[len(_MARK) : start]), data[start:]

    def _values(self, what: str, round_number: int, asked: int) -> Path:
        return self._folder / f"{what}-{round_number:06d}-{asked:02d}.f32"

    def _sum(self, request: SecureSumRequest) -> Path:
        # With `asked` in the name, a later step cannot bring other values than the opening was judged by.
        return self._values(request.what, request.round, request.asked).with_suffix("").with_name(
            f"{request.what}-{request.round:06d}-{request.asked:02d}-{request.attempt:05d}.sum"
        )

    def _mark(self, request: SecureSumRequest) -> Path:
        return self._values(request.what, request.round, request.asked).with_suffix(".revealed")

    def _forget_before(self, round_number: int) -> None:
        """The coordinator repeats only the round that it is in; marks stay, they are empty."""
        for path in self._folder.iterdir():
            match = _OLD.fullmatch(path.name)
            if match and int(match.group(1)) < round_number:
                remove_private(path)


def _attempt(request: SecureSumRequest) -> bytes:
    return str(request.attempt).encode()


def sum_files(site: Site, protocol: Protocol) -> SumFiles:
    """A study's files in the site's state."""
    return SumFiles(site.config.state / "secure" / study_folder(protocol))


def vector_of(update: Arrays, received: Arrays) -> Vector:
    """What a round changed, tensor after tensor in the order of their names; float32, one dimension."""
    return np.concatenate([(update[name] - received[name]).ravel() for name in sorted(received)], dtype=np.float32)


def check_can_sum(site: Site, protocol: Protocol) -> None:
    """Refuse a round whose update could not be summed, before anything is charged for it.

    Raises:
        ConfigError: this trainer knows no coordinator.
        PrivacyError: the key of another site was never confirmed here.
    """
    if site.record is None:
        raise ConfigError("a study with a secure sum needs signed requests, and this trainer knows no coordinator",
                          remedy="name the coordinator in the trainer's configuration")  # fmt: skip
    known = read_peers(site.config.protocols.parent)
    missing = sorted({s.name for s in protocol.federation.sites} - {site.config.site} - known.keys())
    if missing:
        raise PrivacyError("the secure sum names sites whose keys nobody here has confirmed", found=missing[:8],
                           remedy="`mammofed site review`: compare the six words of each, then approve")  # fmt: skip


def answer_secure_sum(site: Site, request: SecureSumRequest) -> bytes:
    """One step of one sum; its state is on the disk before the reply is returned.

    Raises:
        ProtocolError, MessageError, SignatureError: not the coordinator's, or not for this site.
        PrivacyError: a sum in which this site should not take part.
        StorageError: the state cannot be kept; nothing is sent.
    """
    started = time.monotonic()
    protocol = site.protocol(request.protocol_sha256, study=request.study)
    allowed = quantities(protocol) if site.config.role == "site" else ()
    if request.what not in allowed:
        raise ProtocolError("the protocol has no such secure sum for this party", found=request.what,
                            expected=", ".join(allowed) or "none")  # fmt: skip
    check_can_sum(site, protocol)
    assert site.record is not None
    files, signing = sum_files(site, protocol), site.record.key
    kept = files.read(request)
    if kept is not None:
        return _go_on(site, protocol, request, files, SumSite.from_bytes(kept, signing=signing), started)
    if request.step != "keys":
        raise MessageError(f"no secure sum is open here of which {request.step!r} could be asked",
                           remedy="the coordinator opens a new attempt")  # fmt: skip
    return _join(site, protocol, request, files, signing, started)


def _join(
    site: Site, protocol: Protocol, request: SecureSumRequest, files: SumFiles, signing: SigningKey, started: float
) -> bytes:
    """The first step: judge the terms, and make keys."""
    assert site.config.coordinator is not None
    subject = subject_of(protocol, what=request.what, round_number=request.round)
    party = SumSite.join(
        request.opened(), site=site.config.site, signing=signing, coordinator=site.config.coordinator.verify_key,
        confirmed=read_peers(site.config.protocols.parent), least_sites=max(LEAST_SITES, site.config.least_sites),
        revealed=(subject,) if files.revealed(request, fresh=protocol.private) else (),
    )  # fmt: skip
    check_terms(party.session, protocol, what=request.what, round_number=request.round, attempt=request.attempt)
    if request.what == COUNTS and not files.has(request):  # made once for all attempts
        files.keep(COUNTS, request.round, request.asked, counts_for_sum(site, protocol))
    if len(files.values(request)) != party.session.length:  # said now, before others wait for this site
        raise MessageError("the secure sum is of another length than this site's values", found=party.session.length,
                           expected=len(files.values(request)))  # fmt: skip
    return _keep(site, request, files, party, party.keys(), started)


def _go_on(
    site: Site, protocol: Protocol, request: SecureSumRequest, files: SumFiles, party: SumSite, started: float
) -> bytes:
    """A later step, or a step that is asked again."""
    document, words = request.opened(), None
    match request.step:
        case "keys":
            reply = party.keys(again=document)
        case "share":
            reply = party.share(document)
        case "mask":
            # A repetition needs no values: they may have been summed by now.
            values = files.values(request) if party.state.step == "shared" else np.zeros(0, np.float32)
            contribution = party.mask(document, values)
            reply, words = contribution.document, contribution.words
        case "confirm":
            reply = party.confirm(document)
        case "unmask":
            if files.revealed(request, fresh=protocol.private) - {_attempt(request)}:
                raise PrivacyError("these values were summed in another attempt; a second sum over other sites would "
                                   "tell them apart", found=f"attempt {request.attempt}",
                                   remedy="the coordinator goes on with the sum that it opened")  # fmt: skip
            reply = party.unmask(document)
            files.reveal(request)
    return _keep(site, request, files, party, reply, started, words)


def _keep(
    site: Site, request: SecureSumRequest, files: SumFiles, party: SumSite, document: bytes, started: float,
    words: bytes | None = None,
) -> bytes:  # fmt: skip
    """State to the disk, then the reply."""
    state = party.to_bytes()
    seconds = files.write(request, state, seconds=told(time.monotonic() - started, coarse=True))
    reply = SecureSumReply(
        site=site.config.site, study=request.study, what=request.what, round=request.round, attempt=request.attempt,
        step=request.step, document=document.decode("ascii"), seconds=seconds,
    )  # fmt: skip
    return encode(Frame(reply, {} if words is None else {MASKED: np.frombuffer(words, dtype="<u4")}))
