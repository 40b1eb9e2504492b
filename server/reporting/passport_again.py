"""Signs a passport again once the model's heat maps have been measured; called by launcher, `simulate localise` and
`mammofed server passport`.

What the study recorded is taken from the former passport as it stands, and so are the hashes of the files that it
names: between its check and this signature lie minutes of measuring. New are the figures of heat maps, files that it
does not name, what it says of heat maps and of further deltas, and when it was made. The former one stays beside it
under its hash, and the new one names it.
"""

from __future__ import annotations

import time
from pathlib import Path

from server.release import make_release, release_json
from server.reporting.facts import mapping, read_other_deltas
from server.reporting.limits import MAPS, maps_limit
from server.reporting.passport import BESIDE, NEEDED, Signature, files_part
from server.rounds.checkpoint import write_bytes
from server.rounds.journal_digest import journal_sha256
from shared_model.errors import PassportError
from shared_model.map_figures import LOCALISATION
from shared_model.passport import PASSPORT, Passport, SignedPassport, Verified, former_name
from shared_model.passport.document import FilePart, PrivacyPart, SpentPart
from shared_model.released import RELEASE

NEW = {"made", "files", "limits", "privacy", "record", "replaces"}  # in a passport that was signed again
RESTORE = "restore the run directory from its backup"


def sign_again(before: Verified, signature: Signature) -> SignedPassport:
    """Replace the passport of a run directory by one that vouches for what lies there now.

    Args:
        before: the former one, checked before the new figures were written: what does not fit is not signed again.

    Raises:
        PassportError: something that it names was changed since that check, or another release.json came.
        StorageError: the run directory is damaged or cannot be written.
    """
    run_dir, former = before.folder, before.signed
    files, said = files_now(before), former.passport
    passport = said.model_copy(update={
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "files": files,
        "limits": _limits(run_dir, said), "privacy": _privacy(run_dir, said.privacy),
        "record": said.record.model_copy(update={"head": signature.head()} if signature.head else {}),
        "replaces": (former.sha256, *said.replaces)[:64],
    })  # fmt: skip
    signed = SignedPassport.sign(passport, kind=signature.kind, name=signature.name, key=signature.key)
    write_bytes(run_dir / former_name(former.sha256), former.to_json())
    write_bytes(run_dir / PASSPORT, signed.to_json())
    return signed


def is_or_follows(found: Verified, sha256: str) -> bool:
    """Whether a passport is the one of this hash, or was signed again after it.

    Anybody can sign a passport that claims to replace another. Believed is the former one itself, which lies beside it:
    it has that hash, and says the same of model, study and figures.
    """
    now = found.signed.passport
    if sha256 == found.signed.sha256:
        return True
    if sha256 not in now.replaces or not (found.folder / former_name(sha256)).exists():
        return False
    former = SignedPassport.read(found.folder / former_name(sha256))
    same = all(getattr(former.passport, name) == getattr(now, name) for name in Passport.model_fields.keys() - NEW)
    return former.sha256 == sha256 and same


def files_now(before: Verified) -> tuple[FilePart, ...]:
    """The files that a new passport would name. What the former one names keeps its hash, also where it does not lie
    here: whoever puts another file in its place is found. Only figures of heat maps may be others.

    Raises:
        PassportError: another file lies here under a name of the former passport, or a release.json that the study did
            not make.
    """
    former = {part.name: part for part in before.signed.passport.files}
    found = {part.name: part for part in files_part(before.folder)}
    for name, part in former.items():
        if name != LOCALISATION and found.setdefault(name, part) != part:
            raise PassportError(f"{before.folder / name} was changed after the passport was signed",
                                found=found[name].sha256[:16], expected=part.sha256[:16], remedy=RESTORE)  # fmt: skip
    if LOCALISATION in former:
        found.setdefault(LOCALISATION, former[LOCALISATION])
    if RELEASE in found and RELEASE not in former:
        _check_release(before)
    return tuple(found[name] for name in (*NEEDED, *BESIDE) if name in found)


def _check_release(before: Verified) -> None:
    """Thresholds that sites will score by are signed only where the study's journal, as it was, gives them."""
    run_dir = before.folder
    own = journal_sha256(run_dir / "journal.sqlite") == before.signed.passport.record.journal_sha256
    if not own or (run_dir / RELEASE).read_bytes() != release_json(make_release(run_dir)):
        raise PassportError(f"{run_dir / RELEASE} is not what the study's journal gives, and is not signed",
                            remedy="remove it; `mammofed server release` makes it anew")  # fmt: skip


def _limits(run_dir: Path, said: Passport) -> tuple[str, ...]:
    """As they were; only what is said of heat maps is said anew, in its place."""
    limits, new = list(said.limits), maps_limit(run_dir, said.model.sha256)
    at = [number for number, words in enumerate(limits) if words.startswith(MAPS)]
    limits[at[0] if at else len(limits) : at[-1] + 1 if at else len(limits)] = [new]
    return tuple(limits)


def _privacy(run_dir: Path, said: PrivacyPart) -> PrivacyPart:
    others = read_other_deltas(run_dir)
    return said.model_copy(update={"sites": tuple(
        SpentPart.model_validate({**row.model_dump(), "at_other_deltas": dict(mapping(others.get(row.site)))})
        for row in said.sites
    )})  # fmt: skip
