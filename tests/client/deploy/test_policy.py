"""policy.yaml: safe as it is made, every wrong field named, and nothing read as something else than it says."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from client.deploy.home import Party, SiteHome
from client.deploy.policy_file import MAX_POLICY_BYTES, Policy, policy_lines
from client.trainer.wire import MAX_SOCKET_PATH
from shared_model.certificates import Role
from shared_model.errors import ConfigError, StorageError
from shared_model.private_files import write_private
from shared_model.signed_protocol import Coordinator
from shared_model.signing import SigningKey
from tests.conftest import write_cohort

HUB = Coordinator.of("hub", SigningKey.generate().public)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "a cohort's \"place\""
    write_cohort(folder, site="north", patients=4, seed=1)
    return folder


@pytest.fixture
def home(tmp_path: Path, cohort: Path) -> SiteHome:
    return made(tmp_path, cohort)


def made(folder: Path, cohort: Path, role: Role = Role.SITE) -> SiteHome:
    home = SiteHome.create(folder / "home", cohort=cohort, role=role)
    party = Party(site="north", role=role)
    write_private(home.trainer / "party.json", party.model_dump_json().encode())
    return home


def test_a_hospitals_policy_is_safe_as_it_is_made_and_private(home: SiteHome, cohort: Path) -> None:
    policy = Policy.read(home.policy_file)
    assert policy.private_only and policy.epsilon_limit == 8.0 and policy.delta_limit == 1e-5
    assert policy.cohort == cohort and policy.test_fraction == 0.2 and len(policy.salt) == 32
    for path in [home.folder, *home.folder.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    assert home.config_for(HUB).fractions == {"train": 0.8, "test": 0.2}


def test_an_evaluators_policy_splits_what_is_held_out(tmp_path: Path, cohort: Path) -> None:
    home = made(tmp_path, cohort, Role.EVALUATOR)
    assert home.config_for(HUB).fractions == {"selection": 0.4, "test": 0.6}
    assert home.config_for(HUB).role == "evaluator"


def test_making_it_again_keeps_the_policy_and_two_sites_have_two_salts(tmp_path: Path, cohort: Path) -> None:
    first = SiteHome.create(tmp_path / "a", cohort=cohort, role=Role.SITE)
    text = first.policy_file.read_text()
    SiteHome.create(tmp_path / "a", cohort=cohort, role=Role.SITE)
    assert first.policy_file.read_text() == text
    other = SiteHome.create(tmp_path / "b", cohort=cohort, role=Role.SITE)
    assert Policy.read(other.policy_file).salt != Policy.read(first.policy_file).salt


@pytest.mark.parametrize("salt", ["1" * 32, "0" * 32, "12e" + "3" * 29])
def test_a_salt_that_looks_like_a_number_is_a_text(
    tmp_path: Path, cohort: Path, monkeypatch: pytest.MonkeyPatch, salt: str
) -> None:
    """A salt of digits alone is drawn once in some millions of homes."""
    monkeypatch.setattr("client.deploy.policy_file.secrets.token_hex", lambda size: salt)
    assert Policy.read(made(tmp_path, cohort).policy_file).salt == salt


def test_the_policy_is_what_the_trainer_is_configured_with(home: SiteHome) -> None:
    values = yaml.safe_load(home.policy_file.read_text())
    changed = {"epsilon_limit": 2, "delta_limit": None, "private_only": False, "device": "cuda:1", "test_fraction": 0.5}
    write_private(home.policy_file, yaml.safe_dump(values | changed).encode())
    config = home.config_for(HUB)
    assert (config.epsilon_limit, config.delta_limit) == (2.0, None)
    assert (config.private_only, config.device) == (False, "cuda:1")
    assert config.fractions == {"train": 0.5, "test": 0.5} and config.salt == values["salt"]
    assert config.cohort == Path(values["cohort"]) and config.coordinator == HUB


WRONG: list[tuple[str, Any]] = [
    ("cohort", "relative/path"), ("cohort", None), ("cohort", 7), ("device", "gpu"), ("device", "cuda:x"),
    ("device", "cpu; rm"), ("device", None), ("private_only", "no"), ("private_only", 1), ("private_only", None),
    ("epsilon_limit", "8"), ("epsilon_limit", True), ("epsilon_limit", -1.0), ("epsilon_limit", float("nan")),
    ("epsilon_limit", float("inf")), ("delta_limit", 0), ("delta_limit", 1), ("delta_limit", "1e-5"),
    ("delta_limit", False), ("salt", ""), ("salt", None), ("salt", 12), ("salt", "x" * 201), ("test_fraction", 0),
    ("test_fraction", 1), ("test_fraction", "0.2"), ("test_fraction", None), ("extra", 1),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), WRONG, ids=[f"{field}={str(value)[:12]}" for field, value in WRONG])
def test_a_wrong_field_is_named(home: SiteHome, field: str, value: Any) -> None:
    values = yaml.safe_load(home.policy_file.read_text()) | {field: value}
    write_private(home.policy_file, yaml.safe_dump(values).encode())
    with pytest.raises(ConfigError, match=rf"no valid policy: {field}.*correct the named fields") as caught:
        Policy.read(home.policy_file)
    assert caught.value.exit_code == 10
    with pytest.raises(ConfigError, match=field):
        home.config_for(HUB)


def test_every_field_that_is_missing_or_wrong_is_named_at_once(home: SiteHome) -> None:
    write_private(home.policy_file, b"device: gpu\nepsilon_limit: -1\n")
    with pytest.raises(ConfigError) as caught:
        Policy.read(home.policy_file)
    for field in Policy.model_fields:
        assert f"{field}: " in str(caught.value)


@pytest.mark.parametrize("line", list(policy_lines()))
def test_a_line_that_is_missing_stops_the_site_and_is_named(home: SiteHome, line: str) -> None:
    """An older release's policy is no licence: what a hospital allows is what it wrote."""
    values = yaml.safe_load(home.policy_file.read_text())
    del values[line]
    write_private(home.policy_file, yaml.safe_dump(values).encode())
    with pytest.raises(ConfigError, match=rf"policy: {line}: this line is missing.*mammofed site policy") as caught:
        home.config_for(HUB)
    assert caught.value.exit_code == 10


def test_every_limit_of_a_new_policy_stands_in_the_file_with_its_meaning(home: SiteHome) -> None:
    text, policy = home.policy_file.read_text(), Policy.read(home.policy_file)
    for name, line in policy_lines().items():
        assert f"{line}\n" in text and "# " in line
        assert yaml.safe_load(line)[name] == getattr(policy, name) == getattr(home.config_for(HUB), name)


@pytest.mark.parametrize(("text", "words"), [
    (b"", "no valid policy"), (b"- a\n- b\n", "no valid policy"), (b"just words", "no valid policy"),
    (b"a: [", "no YAML"), (b"\xff\xfe", "no YAML"), (b"cohort: 2027-13-45", "no YAML"),
    (b"salt: a\nsalt: b\n", "stands twice"), (b"a: &x 1\nb: *x\n", "alias"), (b"a: " + b"[" * 100, ""),
    (b"x: !!python/object/apply:os.system [id]", ""),
], ids=["empty", "list", "words", "torn", "bytes", "month 13", "twice", "alias", "deep", "object"])  # fmt: skip
def test_what_is_no_policy_is_an_error_in_words(home: SiteHome, text: bytes, words: str) -> None:
    write_private(home.policy_file, text)
    with pytest.raises(ConfigError, match=words) as caught:
        Policy.read(home.policy_file)
    assert str(home.policy_file) in str(caught.value) and len(str(caught.value)) < 2000


def test_a_policy_that_is_too_long_is_not_read_to_its_middle(home: SiteHome) -> None:
    """A limit that stands behind the bound would be cut off, and its safe default be taken for the hospital's word."""
    write_private(home.policy_file, b"# " + b"x" * MAX_POLICY_BYTES + b"\n" + home.policy_file.read_bytes())
    with pytest.raises(ConfigError, match="too long for a policy"):
        Policy.read(home.policy_file)


def test_a_policy_that_is_gone_stops_everything(home: SiteHome) -> None:
    home.policy_file.unlink()
    with pytest.raises(ConfigError, match="without a policy nothing runs"):
        Policy.read(home.policy_file)
    with pytest.raises(ConfigError, match="mammofed site init"):
        SiteHome.open(home.folder)


@pytest.mark.parametrize("name", ["party.json", "coordinator.json"])
def test_a_damaged_file_of_the_trainers_is_named_and_one_open_to_others_is_not_used(home: SiteHome, name: str) -> None:
    write_private(home.trainer / "coordinator.json", HUB.model_dump_json().encode())
    path = home.trainer / name
    whole = path.read_bytes()
    write_private(path, b"{")
    with pytest.raises(ConfigError, match=f"{name} is damaged"):
        home.trainer_config()
    write_private(path, whole)
    path.chmod(0o644)
    with pytest.raises(StorageError, match="open to other users"):
        home.trainer_config()


def test_a_socket_below_a_long_path_lies_elsewhere_and_still_belongs_to_this_home(tmp_path: Path) -> None:
    short, deep = SiteHome(tmp_path), [SiteHome(tmp_path / ("x" * 120) / name) for name in "ab"]
    assert short.socket.is_relative_to(tmp_path) or len(str(tmp_path)) > MAX_SOCKET_PATH
    places = [home.socket for home in deep]
    assert all(len(str(place).encode()) <= MAX_SOCKET_PATH for place in places) and len(set(places)) == 2
    assert deep[0].socket == places[0]


@pytest.mark.parametrize("file", [False, True])
def test_a_strangers_folder_in_the_sockets_place_is_not_talked_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: bool
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    deep = SiteHome(tmp_path / ("x" * 120))
    (deep.folder / "run").mkdir(parents=True)
    place = deep.socket.parent
    place.touch() if file else place.mkdir(0o700)
    if not file:
        assert deep.socket.parent == place, "our own"
        user = place.lstat()
        strange = os.stat_result((*user[:4], user.st_uid + 1, *user[5:]))
        real = Path.lstat
        monkeypatch.setattr(Path, "lstat", lambda path: strange if path == place else real(path))
    with pytest.raises(ConfigError, match="somebody else's folder") as told:
        deep.socket  # noqa: B018
    assert "shorter" in told.value.remedy
