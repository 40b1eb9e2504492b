"""What lies in a bundle, and whether it is what was made; read by `bundle verify`, written by `make`.

    SHA256SUMS          of every other file, as sha256sum(1) takes it; its own six words are compared over the phone
    manifest.json       release, roles, Python, machine, commit
    wheels/*.whl        the release and all that it needs
    requirements.txt    the wheels, pinned and by hash (pip's --require-hashes)
    constraints.txt     as the release was tested
    sbom.cdx.json       software bill of materials (CycloneDX 1.6)
    docs/, deploy/      papers, service files, Dockerfiles
    install.sh          installs from here, with no network
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared_model.errors import BundleError
from shared_model.fingerprint import six_words

SUMS, MANIFEST, REQUIREMENTS, SBOM, INSTALLER = (
    "SHA256SUMS", "manifest.json", "requirements.txt", "sbom.cdx.json", "install.sh",
)  # fmt: skip
WHEELS = "wheels"
MAX_FILES = 10_000
MAX_SUMS_BYTES = 4 << 20
_LINE = re.compile(r"([0-9a-f]{64})  ([A-Za-z0-9_.+!-]+(?:/[A-Za-z0-9_.+!-]+)*)")
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")
_AGAIN = "take the bundle again, and compare the six words of its SHA256SUMS over the phone"

Role = Literal["site", "evaluator", "coordinator", "all"]
Text = Annotated[str, Field(max_length=200)]


class Manifest(BaseModel):
    """manifest.json. commit: of the source that the release was built from, "" when it is not known."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    release: Text
    role: Role
    python: Annotated[str, Field(pattern=r"^3\.\d{1,2}$")]
    machine: Text
    commit: Text


@dataclass(frozen=True, kw_only=True)
class Verified:
    """A bundle that is whole. sha256: of its SHA256SUMS, which stands for all of it."""

    manifest: Manifest
    files: int
    bytes: int
    wheels: int
    sha256: str

    @property
    def words(self) -> str:
        """Six words of the whole bundle, for two people on the phone."""
        return six_words(bytes.fromhex(self.sha256))


def verify(folder: Path) -> Verified:
    """Check a bundle: every file is there, as it was made, and nothing else is.

    Raises:
        BundleError: names the first file that is missing, more, or changed.
    """
    listed = _listed(folder)
    there = set(files(folder)) - {SUMS}
    if missing := sorted(listed.keys() - there):
        raise BundleError("a file of the bundle is missing", found=missing[0], remedy=_AGAIN)
    if more := sorted(there - listed.keys()):
        raise BundleError("the bundle holds a file that it was not made with", found=more[0], remedy=_AGAIN)
    for name, digest in sorted(listed.items()):
        if sha256_of(folder / name) != digest:
            raise BundleError("a file of the bundle was changed", found=name, remedy=_AGAIN)
    wheels = {digest for name, digest in listed.items() if name.startswith(f"{WHEELS}/")}
    _check_lists(folder, wheels)
    return Verified(
        manifest=read_manifest(folder), files=len(listed) + 1, wheels=len(wheels), sha256=sha256_of(folder / SUMS),
        bytes=sum((folder / name).stat().st_size for name in listed),
    )  # fmt: skip


def read_manifest(folder: Path) -> Manifest:
    """manifest.json.

    Raises:
        BundleError: absent or of another form.
    """
    try:
        return Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except (OSError, ValidationError):
        raise BundleError(f"{MANIFEST} is absent or of another release's form", remedy=_AGAIN) from None


def files(folder: Path) -> Iterator[str]:
    """Names of all files under a folder, with `/` between the parts.

    Raises:
        BundleError: something else than a plain file or folder lies there.
    """
    for count, path in enumerate(sorted(folder.rglob("*"))):
        if count >= MAX_FILES:
            raise BundleError("the bundle holds too many files", expected=f"at most {MAX_FILES}")
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise BundleError("the bundle holds something else than files", found=path.name[:80], remedy=_AGAIN)
        if path.is_file():
            yield path.relative_to(folder).as_posix()


def sums(folder: Path) -> str:
    """The text of SHA256SUMS for what lies in a folder."""
    return "".join(f"{sha256_of(folder / name)}  {name}\n" for name in files(folder) if name != SUMS)


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _listed(folder: Path) -> dict[str, str]:
    path = folder / SUMS
    try:
        if path.stat().st_size > MAX_SUMS_BYTES:
            raise BundleError(f"{SUMS} is too large", remedy=_AGAIN)
        lines = path.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        raise BundleError(f"{folder} is no bundle", expected=f"a folder with {SUMS}",
                          remedy="unpack it and name the folder") from None  # fmt: skip
    found = [match.groups() for line in lines if (match := _LINE.fullmatch(line))]
    names = {name for _, name in found}
    odd = any(part in (os.curdir, os.pardir) for name in names for part in name.split("/"))
    if len(found) != len(lines) or len(names) != len(lines) or odd:
        raise BundleError(f"{SUMS} is damaged", expected="one line for each file", remedy=_AGAIN)
    return {name: digest for digest, name in found}


def _check_lists(folder: Path, wheels: set[str]) -> None:
    """What pip is told to install, and what the bill of materials says, are the wheels that lie there."""
    try:
        pinned = set(_HASH.findall((folder / REQUIREMENTS).read_text(encoding="ascii")))
        components = json.loads((folder / SBOM).read_text(encoding="utf-8"))["components"]
        stated = {entry["content"] for component in components for entry in component["hashes"]}
    except (OSError, ValueError, KeyError, TypeError):
        raise BundleError(f"{REQUIREMENTS} or {SBOM} is absent or damaged", remedy=_AGAIN) from None
    for name, found in ((REQUIREMENTS, pinned), (SBOM, stated)):
        if found != wheels:
            raise BundleError(f"{name} does not list the wheels of the bundle", found=f"{len(found)} wheels",
                              expected=f"{len(wheels)}", remedy=_AGAIN)  # fmt: skip
