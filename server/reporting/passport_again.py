"""Signs a passport again once the model's heat maps have been measured; called by launcher, `simulate localise` and
`mammofed server passport`.

What the study recorded is taken from the former passport as it stands, after a check that nothing was changed since;
new are the files that it names, what it says of heat maps and of further deltas, and when it was made. The former one
stays beside it under its hash, and the new one names it.
"""

from __future__ import annotations

import time

from server.reporting.facts import read_facts
from server.reporting.limits import limits_of
from server.reporting.passport import Signature, files_part, privacy_part
from server.rounds.checkpoint import write_bytes
from shared_model.passport import PASSPORT, SignedPassport, Verified, former_name


def sign_again(before: Verified, signature: Signature) -> SignedPassport:
    """Replace the passport of a run directory by one that vouches for what lies there now.

    Args:
        before: the former one, checked before the new figures were written: what does not fit is not signed again.

    Raises:
        StorageError: the run directory is damaged or cannot be written.
    """
    run_dir, former = before.folder, before.signed
    facts = read_facts(run_dir)
    passport = former.passport.model_copy(update={
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "files": files_part(run_dir),
        "limits": limits_of(facts), "privacy": privacy_part(facts),
        "record": former.passport.record.model_copy(update={"head": signature.head()} if signature.head else {}),
        "replaces": (former.sha256, *former.passport.replaces)[:64],
    })  # fmt: skip
    signed = SignedPassport.sign(passport, kind=signature.kind, name=signature.name, key=signature.key)
    write_bytes(run_dir / former_name(former.sha256), former.to_json())
    write_bytes(run_dir / PASSPORT, signed.to_json())
    return signed
