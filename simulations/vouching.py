"""The passport of a simulated study: signed when its heat maps were measured, and again when they are measured later.

A rehearsed coordinator (`engine=deployment`) signs as a real one does, when its last round has closed: before anybody
measured a map, which its passport then says. It signs again here, with its own key, what this machine has measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from server.deploy import passports
from server.deploy.home import CoordinatorHome
from server.reporting import Signature, write_passport
from server.reporting.passport_again import files_now, sign_again
from shared_model.errors import PassportError, SignatureError
from shared_model.map_figures import LOCALISATION
from shared_model.passport import PASSPORT, SignedPassport, Verified, verify
from simulations.maps_at_end import measure_maps

HUB: Final = Path("deployment") / "hub"  # of a rehearsal, in its run directory
APART: Final = "localisation-unsigned.json"  # where the passport names other figures and cannot be signed here


def measure_and_sign(
    config: Mapping[str, Any], run_dir: Path, say: Callable[[str], None], call: Callable[..., str]
) -> SignedPassport:
    """At a study's end: measure its heat maps and sign its passport over them; what is signed already stays, and where
    something was changed since, nothing is signed again, which is said. Arguments as of :func:`measure_maps`.

    Raises:
        PassportError, SignatureError: the passport itself was changed.
    """
    if not (run_dir / PASSPORT).exists():
        measure_maps(config, run_dir, say, call)
        return write_passport(run_dir, Signature.of_run())
    try:
        before = verify(run_dir)
    except PassportError as error:
        say(f"The passport is not signed again: {error}")
        return SignedPassport.read(run_dir / PASSPORT)
    if LOCALISATION not in before.checked:
        measure_maps(config, run_dir, say, call)
    try:
        return sign_measured(before) or before.signed
    except (PassportError, SignatureError) as error:  # changed while maps were measured
        say(f"The passport is not signed again: {error}")
        return before.signed


def sign_measured(before: Verified) -> SignedPassport | None:
    """Sign the passport of a run directory again when files came since, or when those that it names are measured anew.

    Args:
        before: as it was before they came.

    Returns:
        the new one; None where nothing is to be signed, or where this machine cannot.

    Raises:
        PassportError, SignatureError: something else was changed, too, or the key is not the rehearsed coordinator's.
    """
    signed = before.signed
    if not can_sign(before) or set(signed.passport.files) == set(files_now(before)):
        return None
    if signed.signer.kind == "run":
        return sign_again(before, Signature.of_run())
    return passports.sign_measured(CoordinatorHome.open(before.folder / HUB), before)


def can_sign(before: Verified) -> bool:
    """Whether the passport is of a run directory of this machine: signed with a key for it alone, or by a coordinator
    that was rehearsed in it."""
    own = (before.folder / "launch.json").exists()
    return own and (before.signed.signer.kind == "run" or (before.folder / HUB / "coordinator.json").exists())
