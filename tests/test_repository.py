"""The map of the repository, enforced: who imports whom, what no file may call, what must be packaged."""

from __future__ import annotations

import ast
import re
import shutil
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
FLOWER = ("client/app.py", "client/gate.py", "server/gate.py", "shared_model/flower_gate.py",
          "server/app.py", "server/aggregation/", "server/deploy/flower_shell.py",
          "server/deploy/superlink.py", "simulations/engine/",
          "simulations/benchmarks/peers/flower_app/", "simulations/benchmarks/deployment/plain_app/")
# What starts often, or never needs a model, must not pay for torch (4 to 5 CPU-seconds).
WITHOUT_TORCH = ("mammofed.py", "client/app.py", "client/trainer/client.py", "client/trainer/config.py",
                 "client/deploy/", "client/watch/", "server/",
                 "shared_model/certificates/", "shared_model/enrolment.py", "shared_model/bounded.py",
                 "shared_model/errors.py", "shared_model/messages/", "shared_model/protocol/",
                 "shared_model/contract/", "shared_model/imaging/", "shared_model/audit/", "shared_model/signing.py",
                 "shared_model/fingerprint.py", "shared_model/signed_protocol.py", "shared_model/signed_request.py",
                 "simulations/cli.py", "simulations/cohorts.py", "simulations/launch.py", "simulations/live.py",
                 "shared_model/secagg/", "simulations/proposal.py", "shared_model/tensors.py",
                 "shared_model/proposal.py", "shared_model/passport/", "simulations/released.py")  # fmt: skip
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
FORBIDDEN_CALLS = {"eval", "exec", "torch.load", "yaml.load", "yaml.unsafe_load", "os.system"}
FORBIDDEN_METHODS = {"extractall", "unsafe_load", "full_load"}


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


def tops(name: str) -> set[str]:
    return {module.partition(".")[0] for module in imported(FILES[name])}


def test_rooms_import_only_what_the_map_allows() -> None:
    wrong = {}
    for name in FILES:
        room = name.partition("/")[0].removesuffix(".py")
        if found := tops(name) & {*ROOMS, "mammofed", "tests"} - MAY_IMPORT[room] - {room}:
            wrong[name] = found
    assert not wrong


def test_flower_is_imported_by_its_adapters_alone() -> None:
    assert [name for name in FILES if tops(name) & {"flwr", "ray"} and not under(name, FLOWER)] == []


@pytest.mark.parametrize("place", [*FLOWER, *WITHOUT_TORCH])
def test_every_place_on_the_map_is_there(place: str) -> None:
    assert any(under(name, (place,)) for name in FILES), "a renamed file would not be looked at any longer"


def test_light_parts_do_not_name_torch() -> None:
    light = [name for name in FILES if under(name, WITHOUT_TORCH)]
    assert len(light) > 20
    assert [name for name in light if tops(name) & {"torch", "opacus", "captum"}] == []


@pytest.mark.parametrize(
    "modules",
    ["mammofed simulations.cli simulations.launch simulations.forecast.command", "client.app client.trainer.client",
     "shared_model.contract", "shared_model.passport.cli shared_model.passport.show simulations.released",
     "shared_model.audit.cli shared_model.signed_protocol shared_model.signed_request",
     "client.deploy.presence server.control.server server.enrolment.gateway server.enrolment.enrol_door",
     "client.deploy.doctor client.deploy.doctor_cli server.doctor shared_model.bundle.make",
     "server.app server.rounds.loop server.rounds.summary server.reporting server.cli", "shared_model.imaging",
     "server.monitor.cli server.monitor.companion server.monitor.status server.monitor.terminal client.watch.run"],
)  # fmt: skip
def test_light_parts_do_not_load_torch_by_a_detour(modules: str) -> None:
    code = f"import sys, {modules.replace(' ', ', ')}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_trainer_does_not_load_flower() -> None:
    code = "import sys, client.trainer.service, client.trainer.server; sys.exit('flwr' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def dangers(name: str) -> Iterator[str]:
    """What a file calls or imports that runs, or unpacks, what it reads."""
    yield from tops(name) & FORBIDDEN_MODULES
    for call in (node for node in ast.walk(FILES[name]) if isinstance(node, ast.Call)):
        called = dotted(call.func)
        if called in FORBIDDEN_CALLS or called.rpartition(".")[2] in FORBIDDEN_METHODS:
            yield f"{called} in line {call.lineno}"
        for keyword in call.keywords:
            fixed = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
            if keyword.arg in ("allow_pickle", "shell") and not fixed:
                yield f"{keyword.arg} in line {call.lineno}"


def test_no_call_that_runs_what_it_reads() -> None:
    assert {name: found for name in FILES if (found := list(dangers(name)))} == {}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("import pickle", ["pickle"]), ("torch.load(f)", ["torch.load in line 1"]), ("eval('1')", ["eval in line 1"]),
        ("model.eval()", []), ("np.load(f, allow_pickle=True)", ["allow_pickle in line 1"]),
        ("np.load(f, allow_pickle=False)", []), ("x.extractall()", ["x.extractall in line 1"]),
        ("import yaml\nyaml.safe_load(f)", []), ("from joblib import load", ["joblib"]),
    ],
)  # fmt: skip
def test_dangers_are_seen(monkeypatch: pytest.MonkeyPatch, text: str, found: list[str]) -> None:
    monkeypatch.setitem(FILES, "probe.py", ast.parse(text))
    assert list(dangers("probe.py")) == found


def test_no_error_is_swallowed() -> None:
    wrong = []
    for name, tree in FILES.items():
        for node in (node for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler)):
            broad = node.type is None or dotted(node.type) in ("Exception", "BaseException")
            if broad and all(isinstance(line, ast.Pass) for line in node.body):
                wrong.append(f"{name}:{node.lineno}")
    assert wrong == []


def test_every_module_says_what_it_is_for() -> None:
    assert [name for name, tree in FILES.items() if len(ast.get_docstring(tree) or "") < 20] == []


def shipped_data() -> list[str]:
    kinds = (".yaml", ".yml", ".json", ".safetensors", ".j2", ".txt", ".service", ".timer", ".conf", ".js", ".css",
             ".html", ".svg")  # fmt: skip
    files = [path for room in ROOMS for path in (ROOT / room).rglob("*") if path.suffix in kinds]
    return sorted(path.relative_to(ROOT).as_posix() for path in files)


def test_configuration_contract_and_report_are_in_the_wheel(tmp_path: Path) -> None:
    """Built from a copy, so that the checkout stays clean."""
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


PAGES = sorted(path.relative_to(ROOT).as_posix() for place in (".", *ROOMS, "tests") for path in
               ((ROOT / place).glob("*.md") if place == "." else (ROOT / place).rglob("*.md")))  # fmt: skip


@pytest.mark.parametrize("page", PAGES)
def test_links_between_pages_and_to_files_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        target, _, anchor = link.partition("#")
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        there = (ROOT / page).parent / target if target else ROOT / page
        assert there.exists(), f"{page} links to {link}"
        heads = re.findall(r"^#+ (.+)$", there.read_text(encoding="utf-8"), re.M) if anchor else []
        assert not anchor or anchor in {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}, link


def test_no_medical_image_or_large_file_is_tracked() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    names = [name for name in listed.stdout.decode().split("\0") if name]
    assert not [name for name in names if name.endswith((".dcm", ".pgm", ".pem", ".key"))]
    assert not [n for n in names if (ROOT / n).is_file() and (ROOT / n).stat().st_size > 8_000_000]
