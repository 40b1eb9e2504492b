"""Writes a site.yaml to start from, with a new key; called by `mammofed site example`."""

from __future__ import annotations

import os
import re
import secrets
from importlib import resources
from pathlib import Path

from client.ingest.site_file import KEY_BYTES
from shared_model.errors import ConfigError, StorageError


def write_example(folder: Path) -> Path:
    """Write `site.yaml` and `importer.key`; returns the former's path.

    Raises:
        ConfigError: one of them is there already. StorageError: the disk refuses.
    """
    site, key = folder / "site.yaml", folder / "importer.key"
    for path in (site, key):
        if path.exists():
            raise ConfigError(f"{path} is there already", remedy="choose another folder; a key is never replaced")
    name = re.sub(r"[^a-z0-9_-]", "-", folder.resolve().name.lower()).strip("-_") or "site"
    text = resources.files("client.ingest").joinpath("example.yaml").read_text("utf-8").replace("{SITE}", name[:63])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(secrets.token_bytes(KEY_BYTES[0]))
        site.write_text(text, "utf-8")
    except OSError as error:
        raise StorageError(f"{folder} cannot be written: {error.strerror}", remedy="choose another folder") from None
    return site
