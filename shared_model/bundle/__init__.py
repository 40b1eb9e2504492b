"""The air-gap bundle: everything that an installation needs in one folder with hashes; made online, checked offline."""

from shared_model.bundle.contents import Verified, verify

__all__ = ["Verified", "verify"]
