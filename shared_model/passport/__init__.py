"""Model passports: what a model is, who trained it, at which price in privacy, and what it must not be used for."""

from shared_model.passport.document import PASSPORT, SBOM, Passport, former_name
from shared_model.passport.signed import SignedPassport
from shared_model.passport.verify import Verified, find_passport, verify
from shared_model.passport.vouched import Vouched, vouch

__all__ = [
    "PASSPORT",
    "SBOM",
    "Passport",
    "SignedPassport",
    "Verified",
    "Vouched",
    "find_passport",
    "former_name",
    "verify",
    "vouch",
]
