"""What is installed here and computes: a software bill of materials of this environment; for model passports.

A bundle's bill of materials lists wheels. Where a study ran there are none any more, so a component is named with the
SHA-256 of its RECORD (the list of its files and their hashes, as pip wrote it), as a property of its own name.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from urllib.parse import quote

from shared_model.bundle.sbom import header_of, licence_of, needs_of, normal

PACKAGES = ("client", "configs", "server", "shared_model", "simulations")
RECORD_PROPERTY = "mammofed:record-sha256"
MAX_COMPONENTS = 2000


def installed_sbom(*, root: str = "mammofed") -> tuple[str, int]:
    """CycloneDX 1.6 (ECMA-424) of `root` and all that it needs and that is installed, extras left out.

    Returns:
        the text and the number of components. The same environment gives the same text: no time stands in it.
    """
    found = _closure(root)
    components = [_component(found[name]) for name in sorted(found) if name != root]
    references = {name: _purl(dist) for name, dist in found.items()}
    release = found[root].version
    marks = "".join(f"{c['purl']}{c.get('properties', '')}" for c in components)
    document = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1,
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, marks)}",
        "metadata": {"component": {"type": "application", "bom-ref": root, "name": root, "version": release}},
        "components": components,
        "dependencies": [
            {"ref": root if name == root else references[name],
             "dependsOn": sorted(references[need] for need in _needs(found[name]) if need in found)}
            for name in sorted(found)
        ],
    }  # fmt: skip
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n", len(components)


def code_sha256() -> str:
    """Hex SHA-256 over names and bytes of every file of this project's packages, as they are installed here."""
    root = Path(__file__).resolve().parents[2]
    digest = hashlib.sha256()
    files = [root / "mammofed.py", *(path for name in PACKAGES for path in (root / name).rglob("*"))]
    for path in sorted(path for path in files if path.is_file() and "__pycache__" not in path.parts):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()}:{len(content)};".encode())
        digest.update(content)
    return digest.hexdigest()


def _closure(root: str) -> dict[str, Distribution]:
    found: dict[str, Distribution] = {}
    waiting = [root]
    while waiting and len(found) < MAX_COMPONENTS:
        name = waiting.pop()
        if name in found:
            continue
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:  # needed under another marker only: another Python, another machine
            continue
        waiting += _needs(found[name])
    return found


def _needs(dist: Distribution) -> list[str]:
    return needs_of(dist.requires or [])


def _component(dist: Distribution) -> dict[str, object]:
    component: dict[str, object] = {
        "type": "library", "bom-ref": _purl(dist), "name": normal(dist.name), "version": dist.version,
        "description": header_of(dist.metadata, "Summary")[:200], "purl": _purl(dist),
    }  # fmt: skip
    if licence := re.sub(r"\s+", " ", licence_of(dist.metadata)):
        component["licenses"] = [{"license": {"name": licence[:200]}}]
    if record := dist.read_text("RECORD"):
        component["properties"] = [{"name": RECORD_PROPERTY, "value": hashlib.sha256(record.encode()).hexdigest()}]
    return component


def _purl(dist: Distribution) -> str:
    return f"pkg:pypi/{normal(dist.name)}@{quote(dist.version, safe='')}"
