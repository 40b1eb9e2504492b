"""Signs the passport of a study by hand: `mammofed server passport`, for when the daemon could not, was older, or
signed before heat maps were measured."""

from __future__ import annotations

from pathlib import Path

from server.deploy.home import CoordinatorHome
from server.deploy.studies import coordinator_signature, find_study
from server.reporting import Signature, write_passport
from server.reporting.passport_again import sign_again
from server.rounds.states import StudyState
from shared_model.audit.heads import Head, SignedHead
from shared_model.audit.verify import verify as verify_log
from shared_model.errors import ConfigError, SignatureError
from shared_model.passport import PASSPORT, SignedPassport, Verified, verify


def sign_passport(home: CoordinatorHome, name: str) -> tuple[Path, SignedPassport]:
    """Write the passport of a study, or give the one that is there. Where something of the model came after that
    (`localisation.json`), it is signed again, and vouches for it too.

    Raises:
        PassportError, SignatureError: the one that is there was changed, or is not of these files.
        ConfigError: there is no such study, or it is not complete.
        AuditError: the coordinator's audit log was changed; while the daemon is writing a line, try again.
    """
    study = find_study(home, name)
    if study.state() is not StudyState.COMPLETE:
        raise ConfigError(f"{name} is not complete", found=study.state().value, expected=StudyState.COMPLETE.value,
                          remedy=f"`mammofed server resume {home.folder} {name}`")  # fmt: skip

    signed = write_passport(study.path, _signature(home))
    before = verify(study.path, key=home.signing_key.public)
    if before.unsigned:
        return study.path / PASSPORT, sign_measured(home, before)
    home.record("passport_signed", study=name, sha256=signed.sha256)
    return study.path / PASSPORT, signed


def sign_measured(home: CoordinatorHome, before: Verified) -> SignedPassport:
    """Sign the passport of a study again, over what was measured since. before: the coordinator's own, as it was.

    Raises:
        SignatureError: somebody else signed it, whatever name it bears.
        PassportError, StorageError: as :func:`server.reporting.passport_again.sign_again`.
    """
    signer = before.signed.signer
    if signer.verify_key != home.signing_key.public:
        raise SignatureError(f"the passport of {before.signed.passport.study} is signed with another key",
                             found=signer.key[:16], expected=home.signing_key.public.hex[:16])  # fmt: skip
    signed = sign_again(before, _signature(home))
    home.record("passport_signed", study=signed.passport.study, sha256=signed.sha256)
    return signed


def _signature(home: CoordinatorHome) -> Signature:
    def head() -> SignedHead:
        log = verify_log(home.audit_file, key=home.signing_key.public)  # the daemon may hold the log: it is only read
        reached = Head(owner=log.owner, log=log.log, sequence=log.entries, sha256=log.sha256, time=log.last)
        return SignedHead.sign(reached, home.signing_key)

    return coordinator_signature(home, head=head)
