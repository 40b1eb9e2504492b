"""A bundle of a small release: what is in it, every way in which it can be wrong, and its installer with no network."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from email.message import Message
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from shared_model.bundle import contents, verify
from shared_model.bundle import make as making
from shared_model.bundle.cli import bundle as command
from shared_model.bundle.sbom import Wheel, licence_of, read_wheel, sbom
from shared_model.errors import BundleError

ROOT = Path(__file__).resolve().parents[3]
PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "mammofed"
version = "0.1.0"
dependencies = ["mf-helper>=1"]
[project.scripts]
mammofed = "mammofed:main"
[tool.setuptools]
py-modules = ["mammofed"]
"""


def write_wheel(folder: Path, name: str, version: str, metadata: str = "", code: str = "") -> Path:
    """A wheel by hand (PEP 427)."""
    module, info = name.replace("-", "_"), f"{name.replace('-', '_')}-{version}.dist-info"
    files = {
        f"{module}.py": code or "WORD = 'helped'\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{metadata}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(
        f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b'=').decode()},"
        f"{len(text)}\n" for path, text in files.items()
    )  # fmt: skip
    path = folder / f"{module}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name_, text in {**files, f"{info}/RECORD": f"{record}{info}/RECORD,,\n"}.items():
            archive.writestr(name_, text)
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout of a small MammoFed, and a folder of wheels in the place of the index."""
    root = tmp_path_factory.mktemp("source")
    (root / "pyproject.toml").write_text(PROJECT)
    (root / "constraints.txt").write_text("mf-helper==1.5\n")
    code = "import mf_helper\ndef main():\n    print('mammofed, version 0.1.0,', mf_helper.WORD)\n"
    (root / "mammofed.py").write_text(code)
    for place, text in {
        "README.md": "read me", "LICENSE": "Apache", "client/SITE.md": "site", "server/COORDINATOR.md": "hub",
        "client/deploy/units/courier.service": "[Service]", "server/deploy/Dockerfile.cpu": "FROM x",
        "server/deploy/secret.key": "no", "runs/study/journal.jsonl": "a study", "hub/ca/ca.key": "no",
    }.items():  # fmt: skip
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).write_text(text)
    (root / "links").mkdir()
    license_ = "License-Expression: MIT\nSummary: helps\nRequires-Dist: absent; extra == 'x'"
    write_wheel(root / "links", "mf-helper", "1.5", license_)
    write_wheel(root / "links", "mf-helper", "1.9")
    return root


@pytest.fixture(scope="module")
def made(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "bundle"
    before = sorted(str(path) for path in source.rglob("*"))
    options = ["--source", str(source), "--no-index", "--find-links", str(source / "links")]
    ended = CliRunner().invoke(command, [*options, str(out)])
    assert ended.exit_code == 0 and "Six words" in ended.output, ended.output
    assert sorted(str(path) for path in source.rglob("*")) == before, "the checkout stays as it is"
    assert [path.name for path in out.parent.iterdir()] == ["bundle"], "nothing is left beside it"
    return out


@pytest.fixture
def bundle(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "bundle"))


# --- what is in it ---


def test_a_bundle_holds_wheels_papers_and_their_hashes(made: Path) -> None:
    found = verify(made)
    assert (found.wheels, found.manifest.release, found.manifest.role) == (2, "0.1.0", "all")
    assert found.manifest.python == f"3.{sys.version_info[1]}" and found.manifest.machine == platform.machine()
    names = set(contents.files(made))
    assert {"wheels/mf_helper-1.5-py3-none-any.whl", "docs/SITE.md", "docs/COORDINATOR.md", "docs/LICENSE",
            "deploy/client/units/courier.service", "deploy/server/Dockerfile.cpu"} <= names  # fmt: skip
    assert not [name for name in names if "1.9" in name or "journal" in name or name.endswith(".key")]
    assert len(found.words.split()) == 6
    lines = (made / "requirements.txt").read_text().splitlines()
    assert [line.split(" ")[0] for line in lines] == ["mammofed==0.1.0", "mf-helper==1.5"]
    assert all("--hash=sha256:" in line for line in lines)


def test_sha256sum_of_any_machine_checks_it(made: Path) -> None:
    done = subprocess.run(["sha256sum", "-c", "--strict", contents.SUMS], cwd=made, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_bill_of_materials_names_each_wheel(made: Path) -> None:
    document = json.loads((made / "sbom.cdx.json").read_text())
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    helper = document["components"][1]
    assert (helper["name"], helper["purl"]) == ("mf-helper", "pkg:pypi/mf-helper@1.5")
    assert helper["licenses"] == [{"license": {"name": "MIT"}}]
    wheel = made / "wheels/mf_helper-1.5-py3-none-any.whl"
    assert helper["hashes"] == [{"alg": "SHA-256", "content": hashlib.sha256(wheel.read_bytes()).hexdigest()}]
    assert {"ref": "pkg:pypi/mammofed@0.1.0", "dependsOn": ["pkg:pypi/mf-helper@1.5"]} in document["dependencies"]
    references = [component["bom-ref"] for component in document["components"]]
    assert len(set(references)) == len(references)
    assert document["serialNumber"].startswith("urn:uuid:")


def test_the_same_wheels_give_the_same_bill() -> None:
    wheel = Wheel(file="a.whl", name="a", version="1+cpu", license="", summary="", needs=("a", "b"), sha256="0" * 64)
    assert sbom([wheel], release="1") == sbom([wheel], release="1")
    assert "pkg:pypi/a@1%2Bcpu" in sbom([wheel], release="1")


@pytest.mark.parametrize(
    ("metadata", "license_"),
    [("License: BSD 3\n and more", "BSD 3"), ("", ""), ("License-Expression: Apache-2.0\nLicense: other", "Apache-2.0"),
     ("Classifier: License :: OSI Approved :: MIT License", "MIT License")],
)  # fmt: skip
def test_licenses(tmp_path: Path, metadata: str, license_: str) -> None:
    assert read_wheel(write_wheel(tmp_path, "x", "1", metadata)).license == license_


def test_what_is_no_wheel_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.whl").write_bytes(b"PK")
    with pytest.raises(BundleError, match="not a wheel"):
        read_wheel(tmp_path / "x.whl")


# --- every way in which it can be wrong ---


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def forge(bundle: Path) -> None:
    """Another wheel, with SHA256SUMS made to fit: what pip is told and the bill still name the first."""
    write_wheel(bundle / "wheels", "mf-helper", "1.5", code="WORD = 'attacked'\n")
    (bundle / "SHA256SUMS").write_text(contents.sums(bundle))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda b: flip(next((b / "wheels").iterdir())), "was changed"),
        (lambda b: flip(b / "install.sh"), "was changed"),
        (lambda b: (b / "docs/SITE.md").unlink(), "is missing"),
        (lambda b: (b / "wheels/evil-1-py3-none-any.whl").write_bytes(b"x"), "not made with"),
        (lambda b: (b / "docs/link").symlink_to("/etc/passwd"), "something else than files"),
        (lambda b: (b / "SHA256SUMS").write_text(f"{'0' * 64}  ../x\n"), "damaged"),
        (lambda b: (b / "SHA256SUMS").write_text(f"{'0' * 64}  /etc/passwd\n"), "damaged"),
        (lambda b: (b / "SHA256SUMS").write_text((b / "SHA256SUMS").read_text() * 2), "damaged"),
        (lambda b: (b / "SHA256SUMS").write_bytes(b"\xff"), "no bundle"),
        (lambda b: (b / "SHA256SUMS").unlink(), "no bundle"),
        (forge, "does not list the wheels"),
    ],
)  # fmt: skip
def test_a_bundle_that_is_not_the_one_that_was_made_is_refused(
    bundle: Path, damage: Callable[[Path], None], words: str
) -> None:
    damage(bundle)
    with pytest.raises(BundleError, match=words):
        verify(bundle)


def test_a_manifest_of_another_form_is_refused(bundle: Path) -> None:
    (bundle / "manifest.json").write_text("{}")
    (bundle / "SHA256SUMS").write_text(contents.sums(bundle))
    with pytest.raises(BundleError, match=r"manifest\.json"):
        verify(bundle)


def test_a_bundle_that_cannot_be_made_leaves_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = write_wheel(tmp_path, "mammofed", "0.1.0", "Requires-Dist: mf-helper>=1")
    monkeypatch.setattr(making, "_own_wheel", lambda source, build: own)  # building it takes seconds
    (tmp_path / "none").mkdir()
    options = ["--no-index", f"--find-links={tmp_path / 'none'}"]
    with pytest.raises(BundleError, match="not all wheels could be had"):
        making.make(tmp_path / "out" / "b", source=source, role="site", pip_options=options)
    assert list((tmp_path / "out").iterdir()) == []
    with pytest.raises(BundleError, match="no checkout"):
        making.make(tmp_path / "b", source=tmp_path, role="site")
    with pytest.raises(BundleError, match="exists already"):
        making.make(tmp_path, source=source, role="site")


@pytest.mark.parametrize(("role", "rooms"), [("site", {"client"}), ("evaluator", {"client"}),
                                             ("coordinator", {"server"}), ("all", {"client", "server"})])  # fmt: skip
def test_a_role_gets_its_papers_and_service_files(
    source: Path, tmp_path: Path, role: contents.Role, rooms: set[str]
) -> None:
    making.copy_papers(source, tmp_path, role)
    assert {path.name for path in (tmp_path / "deploy").iterdir()} == rooms
    assert (tmp_path / "docs/SITE.md").exists() == ("client" in rooms)
    assert (tmp_path / "docs/COORDINATOR.md").exists() == ("server" in rooms)


def test_this_checkout_is_one_that_a_bundle_can_be_made_of() -> None:
    assert making.checkout() == ROOT
    assert all((ROOT / name).exists() for name in making.SOURCES)


def test_the_command_verifies(bundle: Path) -> None:
    whole = CliRunner().invoke(command, ["verify", str(bundle)])
    assert whole.exit_code == 0 and "2 wheels" in whole.output
    flip(bundle / "install.sh")
    refused = CliRunner().invoke(command, ["verify", str(bundle)]).exception
    assert isinstance(refused, BundleError) and refused.exit_code == 81


# --- the installer ---


def isolated() -> list[str]:
    """A network namespace without even a loopback."""
    if os.geteuid() == 0 and shutil.which("unshare"):
        return ["unshare", "--net"]
    pytest.skip("a network namespace needs root and unshare(1)")


def install(bundle: Path, target: Path, *, prefix: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    base = {"PATH": os.environ["PATH"], "HOME": str(target.parent), "PYTHON": sys.executable}
    return subprocess.run([*prefix, "sh", str(bundle / "install.sh"), str(target)], env=base | environment, text=True,
                          capture_output=True, check=False)  # fmt: skip


@pytest.mark.slow
def test_it_installs_with_no_network_whatever_pip_is_told_on_that_machine(bundle: Path, tmp_path: Path) -> None:
    hostile = {"PIP_INDEX_URL": "http://attacker.invalid/simple", "PIP_EXTRA_INDEX_URL": "http://attacker.invalid",
               "PIP_NO_INDEX": "0", "PIP_REQUIRE_HASHES": "0", "PYTHONDONTWRITEBYTECODE": "1"}  # fmt: skip
    done = install(bundle, tmp_path / "target", prefix=isolated(), **hostile)
    assert done.returncode == 0, done.stderr
    assert "Installed  mammofed, version 0.1.0, helped" in done.stdout
    again = install(bundle, tmp_path / "target", prefix=[])
    assert again.returncode == 2 and "exists already" in again.stderr


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda b: flip(next((b / "wheels").iterdir())), "take the bundle again"),
        (lambda b: (b / "docs/SITE.md").unlink(), "take the bundle again"),
        (lambda b: (b / "wheels/evil-1-py3-none-any.whl").write_bytes(b"x"), "more here"),
        (lambda b: (b / "wheels/link").symlink_to("/etc/passwd"), "more here"),
    ],
)  # fmt: skip
def test_the_installer_refuses_what_was_changed(
    bundle: Path, tmp_path: Path, damage: Callable[[Path], None], words: str
) -> None:
    damage(bundle)
    done = install(bundle, tmp_path / "target", prefix=[])
    assert done.returncode == 81 and words in done.stderr and not (tmp_path / "target").exists()


def test_the_installer_refuses_another_python(bundle: Path, tmp_path: Path) -> None:
    python = tmp_path / "python3.9"
    python.write_text("#!/bin/sh\necho '3.9 riscv'\n")
    python.chmod(0o755)
    done = install(bundle, tmp_path / "target", prefix=[], PYTHON=str(python))
    assert done.returncode == 2 and "3.9 riscv" in done.stderr and not (tmp_path / "target").exists()


@pytest.mark.slow
def test_a_wheel_of_another_hash_is_not_installed_and_nothing_is_left(bundle: Path, tmp_path: Path) -> None:
    forge(bundle)
    done = install(bundle, tmp_path / "target", prefix=[])
    assert done.returncode not in (0, 2, 81) and "HASHES" in done.stderr.upper()
    assert not (tmp_path / "target").exists()


@pytest.mark.skipif(find_spec("importlib_metadata") is None, reason="MLflow's backport of importlib.metadata is not "
                    "installed; to try the bill of materials beside it: pip install importlib_metadata")  # fmt: skip
def test_the_bill_of_materials_is_the_same_beside_mlflow_s_backport() -> None:
    """Once loaded, the backport stands in for the standard library's, and raises where a header is absent."""

    def printed(first: str) -> str:
        code = f"{first}; from shared_model.bundle.installed import installed_sbom; print(installed_sbom()[0])"
        return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout

    assert printed("import importlib_metadata") == printed("import importlib.metadata")


def test_a_licence_is_found_where_absent_headers_raise() -> None:
    """As those of the backport of importlib.metadata do, which MLflow puts in place of the standard library's."""

    class Strict(Message):
        def __getitem__(self, name: str) -> Any:
            found = super().__getitem__(name)
            if found is None:
                raise KeyError(name)
            return found

    headers = Strict()
    assert licence_of(headers) == ""
    headers["License"] = "BSD\nand a long text"
    assert licence_of(headers) == "BSD"
    headers["Classifier"] = "License :: OSI Approved :: MIT License"
    assert licence_of(headers) == "MIT License"
    headers["License-Expression"] = "Apache-2.0"
    assert licence_of(headers) == "Apache-2.0"
