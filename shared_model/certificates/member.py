"""Who can be enrolled: a name and a role, as certificates state them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from shared_model.errors import EnrolmentError

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


class Role(StrEnum):
    """What an enrolled member is: a hospital that trains, or the coordinator's evaluator."""

    SITE = "site"
    EVALUATOR = "evaluator"


@dataclass(frozen=True, order=True)
class Member:
    """Who a certificate is for.

    Raises:
        EnrolmentError: no valid name (lower-case letters, digits, - and _, at most 63).
    """

    site: str
    role: Role = Role.SITE

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.site):
            raise EnrolmentError("not a name for a site", expected="a-z, 0-9, - and _; at most 63 of them",
                                 remedy="choose a name such as north or site-2")  # fmt: skip

    @property
    def uri(self) -> str:
        """The name in the certificate."""
        return f"urn:mammofed:{self.role}:{self.site}"
