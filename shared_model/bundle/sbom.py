"""A wheel's own words about itself, and the software bill of materials made of them (CycloneDX 1.6, ECMA-424)."""

from __future__ import annotations

import json
import re
import uuid
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from email.message import Message
from email.parser import HeaderParser
from importlib.metadata import PackageMetadata
from pathlib import Path
from urllib.parse import quote

from shared_model.bundle.contents import sha256_of
from shared_model.errors import BundleError

MAX_METADATA_BYTES = 4 << 20
_NAME = re.compile(r"^\s*([A-Za-z0-9][A-Za-z0-9._-]*)")


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """A wheel. name: normalised (PEP 503). needs: names of what it asks for, extras left out."""

    file: str
    name: str
    version: str
    license: str
    summary: str
    needs: Sequence[str]
    sha256: str


def read_wheel(path: Path) -> Wheel:
    """Read a wheel's METADATA (core metadata 2.x).

    Raises:
        BundleError: it is no wheel.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            (name,) = (n for n in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", n))
            if archive.getinfo(name).file_size > MAX_METADATA_BYTES:
                raise ValueError("too large")
            text = archive.read(name).decode("utf-8", "replace")
    except (OSError, ValueError, zipfile.BadZipFile):
        raise BundleError("not a wheel", found=path.name, remedy="remove it and make the bundle again") from None
    headers = HeaderParser().parsestr(text)
    return Wheel(
        file=path.name, name=normal(str(headers["Name"])), version=str(headers["Version"]), license=licence_of(headers),
        summary=header_of(headers, "Summary"), sha256=sha256_of(path),
        needs=needs_of(list(map(str, headers.get_all("Requires-Dist", [])))),
    )  # fmt: skip


def normal(name: str) -> str:
    """A project's name in its one form (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements(wheels: Sequence[Wheel]) -> str:
    """requirements.txt: exactly these wheels, by hash."""
    return "".join(f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.sha256}\n" for wheel in wheels)


def sbom(wheels: Sequence[Wheel], *, release: str) -> str:
    """The bill of materials. The same wheels give the same text: no time stands in it."""
    references = {wheel.name: _purl(wheel) for wheel in wheels}
    document = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1,
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, ''.join(wheel.sha256 for wheel in wheels))}",
        "metadata": {
            "tools": {"components": [{"type": "application", "name": "mammofed", "version": release}]},
            "component": {"type": "application", "bom-ref": "mammofed", "name": "mammofed", "version": release},
        },
        "components": [_component(wheel) for wheel in wheels],
        "dependencies": [
            {"ref": "mammofed", "dependsOn": [references["mammofed"]] if "mammofed" in references else []},
            *({"ref": references[wheel.name],
               "dependsOn": sorted({references[name] for name in wheel.needs if name in references})}
              for wheel in wheels),
        ],
    }  # fmt: skip
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _component(wheel: Wheel) -> dict[str, object]:
    component: dict[str, object] = {
        "type": "library", "bom-ref": _purl(wheel), "name": wheel.name, "version": wheel.version,
        "description": wheel.summary[:200], "purl": _purl(wheel),
        "hashes": [{"alg": "SHA-256", "content": wheel.sha256}],
    }  # fmt: skip
    if wheel.license:
        component["licenses"] = [{"license": {"name": wheel.license[:200]}}]
    return component


def _purl(wheel: Wheel) -> str:
    return f"pkg:pypi/{wheel.name}@{quote(wheel.version, safe='')}"


def header_of(headers: Message | PackageMetadata, name: str) -> str:
    """The first value of a header; empty where there is none.

    Not `headers[name]`: importlib.metadata's backport, which MLflow puts in its place, raises for what is absent.
    """
    return str((headers.get_all(name, []) or [""])[0])


def licence_of(headers: Message | PackageMetadata) -> str:
    """SPDX expression where there is one, else the classifiers, else the first line of the old field."""
    if expression := header_of(headers, "License-Expression"):
        return expression
    classifiers = [str(c).rpartition(" :: ")[2] for c in headers.get_all("Classifier", []) or []
                   if str(c).startswith("License :: ") and str(c).count(" :: ") > 1]  # fmt: skip
    lines = header_of(headers, "License").strip().splitlines()
    return " and ".join(classifiers) or (lines[0] if lines else "")


def needs_of(requires: Sequence[str]) -> list[str]:
    """Names of what a distribution asks for (its `Requires-Dist`), normalised, extras left out."""
    found = []
    for text in requires:
        requirement, _, marker = text.partition(";")
        if "extra" not in marker and (match := _NAME.match(requirement)):
            found.append(normal(match[1]))
    return sorted(set(found))
