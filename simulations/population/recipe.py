"""What a generated population is made from, and the hash that names it in the cache; called by generate."""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import asdict
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from simulations.population.specs import Population

# Libraries that decide bytes: generators, Fourier transforms, codecs, tags
LIBRARIES = ("numpy", "scipy", "pydicom", "pyjpegls")


def recipe(population: Population) -> dict[str, Any]:
    """Everything that the bytes depend on: profiles, seed, versions of libraries, and a hash of this package's code."""
    versions = {name: version(name) for name in LIBRARIES}
    return {
        "population": asdict(population),
        "versions": {**versions, "python": platform.python_version(), "machine": platform.machine()},
        "code_sha256": _code_sha256(),
    }


def recipe_sha256(population: Population) -> str:
    """SHA-256 of the recipe's canonical JSON."""
    text = json.dumps(recipe(population), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


@lru_cache(maxsize=1)
def _code_sha256() -> str:
    """Hash of this package's modules, so that changed code never serves films that older code made."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
