"""The environment of the peers' packages, made once: what only this comparison needs stays out of the project's own."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

from shared_model.errors import ConfigError

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
FOLDER = Path.home() / ".cache" / "mammofed" / "peers"
INSTALL_LIMIT_S = 1800
PROOF = "import nvflare.recipe, opacus, safetensors, torch, pydantic"


def peers_python(folder: Path) -> str:
    """The interpreter of the peers' environment under `folder`; makes and installs it where it is not there yet.

    A change of the requirements or of Python makes a new one.

    Raises:
        ConfigError: the packages cannot be installed here; says what the installer said last.
    """
    words = REQUIREMENTS.read_bytes() + sys.version.encode()
    home = folder / f"venv-{hashlib.sha256(words).hexdigest()[:12]}"
    python, ready = home / "bin" / "python", home / "ready"
    if not ready.exists():
        _do([sys.executable, "-m", "venv", "--clear", str(home)])
        _do([str(python), "-m", "pip", "install", "--quiet", "--requirement", str(REQUIREMENTS)])
        _do([str(python), "-c", PROOF])
        ready.touch()
    return str(python)


def _do(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_LIMIT_S, check=False)
        said, failed = done.stderr or done.stdout, done.returncode != 0
    except (OSError, subprocess.TimeoutExpired) as error:
        said, failed = str(error), True
    if failed:
        raise ConfigError(
            "the section `peers` cannot install the frameworks that it compares with", found=said.strip()[-300:],
            expected=f"a package registry with what {REQUIREMENTS.name} names, some 1.3 GB of disk",
            remedy="let pip reach a registry, or leave this section out: no other one needs it",
        )  # fmt: skip
