"""Who vouches for a released model, said before it is used: by its passport, or by nobody; for all that score women."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from shared_model.errors import PassportError
from shared_model.passport.document import PASSPORT
from shared_model.passport.show import signer_words
from shared_model.passport.signed import SignedPassport
from shared_model.passport.verify import verify
from shared_model.signing import VerifyKey

RELEASE = "release.json"
NO_PASSPORT = ("no passport: nobody vouches for this model. Its parts fit each other; who trained it, on whom, and "
               "what it must not be used for is not known here")  # fmt: skip


@dataclass(frozen=True)
class Vouched:
    """What a model's folder was found to be. signed: None without a passport. key_given: the signer's key was known
    from elsewhere. checked: files that the passport names and that are those."""

    signed: SignedPassport | None = None
    key_given: bool = False
    checked: tuple[str, ...] = ()

    @cached_property
    def words(self) -> str:
        """One sentence for a terminal or a page."""
        if self.signed is None:
            return NO_PASSPORT
        said = self.signed.passport
        status = "" if said.status == "COMPLETE" else f"; the study is {said.status}: its model is no result"
        older = "" if RELEASE in self.checked else f"; {RELEASE} is not in it: prevalence and bands are unsigned"
        signer = signer_words(self.signed, key_given=self.key_given)
        return f"{self.signed.sha256[:16]} of {said.study}: {signer}{status}{older}"

    @property
    def limits(self) -> tuple[str, ...]:
        """Limits of use, the gravest first; empty without a passport."""
        return () if self.signed is None else self.signed.passport.limits

    @property
    def sha256(self) -> str | None:
        """Of the passport's file."""
        return None if self.signed is None else self.signed.sha256

    def plain(self) -> dict[str, Any] | None:
        """As JSON values, None without a passport."""
        if self.signed is None:
            return None
        return {"sha256": self.sha256, "status": self.signed.passport.status, "signer": self.signed.signer.model_dump(),
                "key_known": self.key_given, "checked": list(self.checked), "limits": list(self.limits)}  # fmt: skip


def vouch(folder: Path, *, key: VerifyKey | None = None) -> Vouched:
    """Check a model's folder against the passport that lies in it.

    Args:
        key: of who should have signed, known from elsewhere; then a folder without a passport is refused.

    Raises:
        SignatureError: the passport was changed, or is of another key.
        PassportError: it is malformed, a file is not the one that it names, or there is none and a key was given.
    """
    if not (folder / PASSPORT).exists():
        if key is not None:
            raise PassportError(f"{folder} has no {PASSPORT}", expected=f"one signed with the key {key.hex[:16]}",
                                remedy="ask the coordinator for it: `mammofed server passport` signs it, "
                                "`mammofed server release` puts it beside the model")  # fmt: skip
        return Vouched()
    found = verify(folder, key=key)
    return Vouched(found.signed, key is not None, found.checked)
