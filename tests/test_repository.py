"""The map of the repository, enforced: who imports whom, what no file may call, what must be packaged."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("shared_model", "client", "server", "simulations", "configs")
# A room may import itself and these; `mammofed.py` mounts commands by name and imports rooms lazily.
MAY_IMPORT = {
    "shared_model": set(), "client": {"shared_model"}, "server": {"shared_model"}, "configs": set(),
    "simulations": {"shared_model", "client", "server", "configs"},
    "mammofed": {"shared_model", "client", "server", "simulations"},
}  # fmt: skip
# Flower stays behind one adapter a side and the local engine.
FLOWER = ("client/app.py", "client/app/", "server/app.py", "server/app/", "server/aggregation/", "simulations/engine/")
# What starts often, or never needs a model, must not pay for torch (4 to 5 CPU-seconds).
WITHOUT_TORCH = ("mammofed.py", "client/app.py", "client/app/", "client/trainer/client.py", "client/trainer/config.py",
                 "server/", "shared_model/errors.py", "shared_model/messages.py", "shared_model/protocol.py",
                 "shared_model/contract/", "shared_model/imaging/", "simulations/cli.py", "simulations/launch.py",
                 "simulations/live.py")  # fmt: skip
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
FORBIDDEN_CALLS = {"eval", "exec", "torch.load", "yaml.load", "yaml.unsafe_load", "os.system"}
FORBIDDEN_METHODS = {"extractall"}


def python_files() -> list[Path]:
    files = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
    return [ROOT / "mammofed.py", *(path for path in files if "__pycache__" not in path.parts)]


FILES = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in python_files()}


def imported(tree: ast.AST) -> Iterator[str]:
    """Dotted names of all modules that a file imports, wherever in the file it does."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute, so that this test sees them"
            yield node.module or ""


def under(name: str, places: tuple[str, ...]) -> bool:
    return any(name == place or (place.endswith("/") and name.startswith(place)) for place in places)


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def test_there_is_something_to_look_at() -> None:
    assert len(FILES) > 50
    assert {name.partition("/")[0] for name in FILES} == {*ROOMS, "mammofed.py"}


@pytest.mark.parametrize("name", FILES)
def test_rooms_import_only_what_the_map_allows(name: str) -> None:
    room = name.partition("/")[0].removesuffix(".py")
    tops = {module.partition(".")[0] for module in imported(FILES[name])} & {*ROOMS, "mammofed", "tests"}
    assert tops <= MAY_IMPORT[room] | {room}


@pytest.mark.parametrize("name", FILES)
def test_flower_is_imported_by_its_adapters_alone(name: str) -> None:
    tops = {module.partition(".")[0] for module in imported(FILES[name])}
    assert not tops & {"flwr", "ray"} or under(name, FLOWER)


@pytest.mark.parametrize("name", [name for name in FILES if under(name, WITHOUT_TORCH)])
def test_light_parts_do_not_name_torch(name: str) -> None:
    assert not {module.partition(".")[0] for module in imported(FILES[name])} & {"torch", "opacus", "captum"}


@pytest.mark.parametrize(
    "modules",
    ["mammofed simulations.cli simulations.launch", "client.app client.trainer.client", "shared_model.contract",
     "server.app server.rounds.loop server.rounds.summary server.reporting server.cli", "shared_model.imaging"],
)  # fmt: skip
def test_light_parts_do_not_load_torch_by_a_detour(modules: str) -> None:
    code = f"import sys, {modules.replace(' ', ', ')}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_trainer_does_not_load_flower() -> None:
    code = "import sys, client.trainer.service, client.trainer.server; sys.exit('flwr' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("name", FILES)
def test_no_call_that_runs_what_it_reads(name: str) -> None:
    calls = [node for node in ast.walk(FILES[name]) if isinstance(node, ast.Call)]
    names = {dotted(call.func) for call in calls}
    assert not names & FORBIDDEN_CALLS
    assert not {n.rpartition(".")[2] for n in names if "." in n} & FORBIDDEN_METHODS
    assert not {module.partition(".")[0] for module in imported(FILES[name])} & FORBIDDEN_MODULES
    for call in calls:
        for keyword in call.keywords:
            if keyword.arg in ("allow_pickle", "shell"):
                assert isinstance(keyword.value, ast.Constant) and keyword.value.value is False, keyword.arg


@pytest.mark.parametrize("name", FILES)
def test_no_error_is_swallowed(name: str) -> None:
    for node in ast.walk(FILES[name]):
        if isinstance(node, ast.ExceptHandler):
            broad = node.type is None or dotted(node.type) in ("Exception", "BaseException")
            assert not (broad and all(isinstance(line, ast.Pass) for line in node.body)), f"line {node.lineno}"


@pytest.mark.parametrize("name", FILES)
def test_every_module_says_what_it_is_for(name: str) -> None:
    words = ast.get_docstring(FILES[name])
    assert words and len(words) > 20


def shipped_data() -> list[str]:
    kinds = (".yaml", ".json", ".safetensors", ".j2")
    files = [path for room in ROOMS for path in (ROOT / room).rglob("*") if path.suffix in kinds]
    return sorted(path.relative_to(ROOT).as_posix() for path in files)


def test_configuration_contract_and_report_are_in_the_wheel(tmp_path: Path) -> None:
    """Built from a copy, so that the checkout stays clean."""
    import shutil

    source = tmp_path / "source"
    for room in ROOMS:
        shutil.copytree(ROOT / room, source / room, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "mammofed.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index",
               "--wheel-dir", str(tmp_path), str(source)]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert set(FILES) <= names
    assert "configs/study/quick.yaml" in names and "server/reporting/report.html.j2" in names
    assert set(shipped_data()) <= names
    assert not any(name.startswith("tests/") or name.endswith(".dcm") for name in names)


def test_constraints_pin_each_dependency_within_its_range() -> None:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    pins = {canonicalize_name(line.partition("==")[0]): line.partition("==")[2] for line in lines}
    assert len(pins) == len(lines)
    for text in [*project["dependencies"], *project["optional-dependencies"]["test"]]:
        requirement = Requirement(text)
        pin = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(pin), f"{text}: constraints.txt has {pin}"
    assert "+" not in pins["torch"], "a local version would bind the project to one machine's wheel"


def test_flower_is_pinned_exactly() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "flwr[simulation]==1.41.0" in project["dependencies"]


def test_files_that_the_papers_name_exist() -> None:
    """A security sentence that points to a test must point to one that is there."""
    for paper in ("SECURITY.md", "README.md"):
        text = (ROOT / paper).read_text(encoding="utf-8")
        for name, _, item in re.findall(r"`(tests/[\w/.]+\.py)(::(\w+))?`", text):
            assert (ROOT / name).is_file(), f"{paper} names {name}"
            there = not item or f"def {item}(" in (ROOT / name).read_text(encoding="utf-8")
            assert there, f"{paper} names {name}::{item}"


def test_no_medical_image_or_large_file_is_tracked() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    names = [name for name in listed.stdout.decode().split("\0") if name]
    assert not [name for name in names if name.endswith((".dcm", ".pgm", ".pem", ".key"))]
    assert not [n for n in names if (ROOT / n).is_file() and (ROOT / n).stat().st_size > 8_000_000]
