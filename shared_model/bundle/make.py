"""Makes a bundle from a checkout: needs the package index, or `--find-links`; called by `mammofed bundle`."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path

from shared_model.bundle.contents import (
    INSTALLER,
    MANIFEST,
    REQUIREMENTS,
    SBOM,
    SUMS,
    WHEELS,
    Manifest,
    Role,
    Verified,
    sums,
    verify,
)  # fmt: skip
from shared_model.bundle.sbom import read_wheel, requirements, sbom
from shared_model.errors import BundleError, StorageError

BUILD_S = 600.0
FETCH_S = 3 * 3600.0  # some 2 GB over a slow line
PAPERS: dict[str, tuple[str, ...]] = {"site": ("client",), "evaluator": ("client",), "coordinator": ("server",),
                                      "all": ("client", "server")}  # fmt: skip
DEPLOY_KINDS = (".service", ".socket", ".timer", ".path", ".target", ".conf", ".yaml", ".md", ".j2")
SOURCES = ("server", "client", "shared_model", "simulations", "configs", "pyproject.toml", "mammofed.py", "README.md",
           "LICENSE")  # fmt: skip
"""What a wheel is built of; a checkout holds studies and keys too, which must not be carried about."""


def checkout() -> Path:
    """The checkout that this installation is of (an editable one, as `make install` leaves it).

    Raises:
        BundleError: it is none.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / "pyproject.toml").exists():
        raise BundleError("this installation is no checkout, and a bundle is made from one",
                          remedy="clone the release, `make install`, and name it with --source")  # fmt: skip
    return root


def make(out: Path, *, source: Path, role: Role, pip_options: Sequence[str] = ()) -> Verified:
    """Make a bundle in `out`, whole or not at all, and verify it.

    Args:
        source: checkout of the release.
        pip_options: where pip finds packages, e.g. `--find-links=DIR --no-index`; none: as pip is configured.

    Raises:
        BundleError: the source is none, or pip finds no wheels. StorageError: the disk refuses.
    """
    release = _release(source)
    if out.exists():
        raise BundleError(f"{out} exists already", expected="a new folder", remedy="remove it or name another")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".bundle-", dir=out.parent) as work:
            folder, build = Path(work) / "bundle", Path(work) / "build"
            (folder / WHEELS).mkdir(parents=True)
            own = _own_wheel(source, build)
            shutil.copy(source / "constraints.txt", folder)
            _fetch(own, folder, pip_options)
            _write_lists(folder, release)
            copy_papers(source, folder, role)
            write_installer(folder, release)
            manifest = Manifest(release=release, role=role, python="{}.{}".format(*sys.version_info[:2]),
                                machine=platform.machine(), commit=_commit(source))  # fmt: skip
            (folder / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
            (folder / SUMS).write_text(sums(folder), encoding="ascii")
            verify(folder)
            folder.rename(out)
    except OSError as error:
        raise StorageError(f"the bundle could not be written: {error.strerror}",
                           remedy="make room: a whole bundle takes some 3 GB while it is made") from None  # fmt: skip
    return verify(out)


def _release(source: Path) -> str:
    try:
        project = tomllib.loads((source / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        name, release = project["name"], str(project["version"])
    except (OSError, ValueError, KeyError, TypeError):
        name = release = ""
    if name != "mammofed" or not (source / "constraints.txt").exists():
        raise BundleError(f"{source} is no checkout of MammoFed", expected="pyproject.toml and constraints.txt",
                          remedy="name the checkout with --source")  # fmt: skip
    return release


def _own_wheel(source: Path, build: Path) -> Path:
    """Built from a copy, so that the checkout stays as it is."""
    (build / "source").mkdir(parents=True)
    for path in (source / name for name in SOURCES):
        if path.is_dir():
            shutil.copytree(path, build / "source" / path.name, ignore=shutil.ignore_patterns("__pycache__"))
        elif path.exists():
            shutil.copy(path, build / "source")
    _pip(["wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(build / "own"),
          str(build / "source")], timeout=BUILD_S, what="the release cannot be built")  # fmt: skip
    (wheel,) = (build / "own").glob("*.whl")
    return wheel


def _fetch(own: Path, folder: Path, pip_options: Sequence[str]) -> None:
    """The release and all that it needs, as wheels; what is there as source only is built here."""
    _pip(["wheel", "--wheel-dir", str(folder / WHEELS), "--constraint", str(folder / "constraints.txt"),
          "--prefer-binary", *pip_options, str(own)], timeout=FETCH_S, what="not all wheels could be had")  # fmt: skip


def _write_lists(folder: Path, release: str) -> None:
    wheels = sorted((read_wheel(path) for path in (folder / WHEELS).glob("*.whl")), key=lambda wheel: wheel.name)
    if len({wheel.name for wheel in wheels}) != len(wheels):
        raise BundleError("two wheels of one project", remedy="make the bundle again into a new folder")
    (folder / REQUIREMENTS).write_text(requirements(wheels), encoding="ascii")
    (folder / SBOM).write_text(sbom(wheels, release=release), encoding="utf-8")


def copy_papers(source: Path, folder: Path, role: Role) -> None:
    """Papers into docs/ and service files into deploy/, of the rooms that a role needs."""
    docs, deploy = folder / "docs", folder / "deploy"
    docs.mkdir()
    for path in (*source.glob("*.md"), source / "LICENSE"):
        if path.exists():
            shutil.copy(path, docs)
    for room in PAPERS[role]:
        for path in (source / room).glob("*.md"):
            shutil.copy(path, docs)
        root = source / room / "deploy"
        for path in sorted(root.rglob("*")) if root.exists() else ():
            wanted = path.suffix in DEPLOY_KINDS or path.name.startswith("Dockerfile")
            if path.is_file() and not path.is_symlink() and wanted:
                target = deploy / room / path.relative_to(root)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)


def write_installer(folder: Path, release: str) -> None:
    """install.sh for this Python and kind of machine."""
    template = Path(__file__).with_name("install.sh.j2").read_text(encoding="utf-8")
    values = {"release": release, "python": "{}.{}".format(*sys.version_info[:2]), "machine": platform.machine()}
    for name, value in values.items():
        template = template.replace("{{ " + name + " }}", value)
    path = folder / INSTALLER
    path.write_text(template, encoding="ascii")
    path.chmod(0o755)


def _commit(source: Path) -> str:
    git = shutil.which("git")
    if git is None:
        return ""
    done = subprocess.run([git, "-C", str(source), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def _pip(arguments: Sequence[str], *, timeout: float, what: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        raise BundleError(what, found=f"no end within {timeout:.0f} s", remedy="check the package index") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip().lower().startswith("error")]
        raise BundleError(what, found=(lines or done.stderr.splitlines() or ["pip says nothing"])[-1][:300],
                          remedy="check the package index and constraints.txt")  # fmt: skip
