"""`mammofed simulate protocol`: a study of real hospitals, complete and calibrated, and what is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from client.privacy.accountant import Account
from server.rounds.checkpoint import read_arrays
from shared_model.errors import ConfigError, ProtocolError, StorageError, WeightsError
from shared_model.messages import weights_sha256
from shared_model.proposal import protocol_yaml, read_protocol
from shared_model.protocol import MAX_PROTOCOL_BYTES, Protocol
from simulations import proposal
from simulations.cli import simulate
from simulations.proposal import draft, read_sites
from tests import fake_grid as fake


def test_the_command_writes_a_complete_calibrated_protocol_and_its_weights(tmp_path: Path) -> None:
    arguments = ["protocol", "--site", "north=423", "--site", "south=300", "--output", str(tmp_path / "pilot"),
                 "name=pilot", "rounds=5", "privacy.epsilon=3.0"]  # fmt: skip
    done = CliRunner().invoke(simulate, arguments)
    assert done.exit_code == 0, done.output
    protocol = read_protocol(tmp_path / "pilot" / "protocol.yaml")
    assert protocol.sha256 in done.output and "north 420" in done.output and "423" not in done.output
    assert (protocol.study, protocol.rounds, protocol.private) == ("pilot", 5, True)
    assert [(site.name, site.patients) for site in protocol.federation.sites] == [("north", 420), ("south", 300)]
    arrays = read_arrays(tmp_path / "pilot" / "initial.safetensors")
    assert weights_sha256(arrays) == protocol.initial_weights.sha256
    spent = Account.from_lists([list(m) for m in protocol.mechanisms(5)]).epsilon(delta=protocol.privacy.delta)
    assert 0.97 * 3.0 < spent <= 3.0


@pytest.fixture
def nothing_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise AssertionError("it was not refused before the noise was calibrated")

    monkeypatch.setattr(proposal, "one_child", refuse)


@pytest.mark.parametrize(("overrides", "error", "words"), [
    (["fuu=1"], ConfigError, "Could not override 'fuu'"),
    (["strategy.quorum=3"], ConfigError, "strategy.quorum: more than there are sites"),
    (["strategy=krum"], ConfigError, "krum withstands 1 lying sites only with 5 or more"),
    (["model=medium"], WeightsError, "public weights"),
    (["rounds=1", "privacy=none"], ConfigError, "too few for the phases"),
])  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_is_computed(
    tmp_path: Path, nothing_is_computed: None, overrides: list[str], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        draft({"north": 400, "south": 300}, tmp_path / "pilot", overrides)
    assert not (tmp_path / "pilot").exists()


def test_a_protocol_that_is_there_is_not_overwritten(tmp_path: Path, nothing_is_computed: None) -> None:
    (tmp_path / "protocol.yaml").write_text("mine")
    with pytest.raises(StorageError, match="is there already"):
        draft({"north": 400}, tmp_path, ["privacy=none"])
    assert (tmp_path / "protocol.yaml").read_text() == "mine"


@pytest.mark.parametrize(("texts", "words"), [
    ([], "none is given"), (["north"], "another form"), (["north="], "another form"), (["North=3"], "another form"),
    (["a/b=3"], "another form"), (["north=-3"], "another form"), (["north=3.5"], "another form"),
    (["north=0"], "no patients"), (["north=3", "north=4"], "stands twice"), (["north=³"], "another form"),
])  # fmt: skip
def test_sites_of_another_form_are_refused(texts: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read_sites(texts)


@pytest.mark.parametrize("strategy", sorted(fake.STRATEGIES))
def test_a_protocol_survives_yaml_to_its_hash(tmp_path: Path, strategy: str) -> None:
    protocol = fake.make_protocol(**fake.STRATEGIES[strategy], federation__server_tau=1e-300, privacy__delta=1e-7)
    (tmp_path / "protocol.yaml").write_text(protocol_yaml(protocol))
    assert read_protocol(tmp_path / "protocol.yaml").sha256 == protocol.sha256


def test_the_protocol_of_a_run_directory_is_one_too_and_a_changed_one_is_found(tmp_path: Path) -> None:
    protocol, path = fake.make_protocol(), tmp_path / "protocol.json"
    path.write_text(protocol.to_json())
    assert read_protocol(path) == protocol
    path.write_text(protocol.to_json().replace('"seed": 3', '"seed": 4'))
    with pytest.raises(ProtocolError, match="was changed after it was frozen"):
        read_protocol(path)


def test_a_site_whose_name_yaml_would_read_as_something_else_survives(tmp_path: Path) -> None:
    sites = [{"name": name, "patients": 40, "weight": 0.5} for name in ("no", "1e3")]
    protocol = fake.make_protocol(federation__sites=sites, federation__sites_per_round=2, federation__quorum=2)
    (tmp_path / "protocol.yaml").write_text(protocol_yaml(protocol))
    assert read_protocol(tmp_path / "protocol.yaml") == protocol


TEXT = protocol_yaml(fake.make_protocol())


@pytest.mark.parametrize(("data", "words"), [
    (b"\xff\xfe", "no text"), (b"[1]", "no protocol"), (b"", "no protocol"), (b"a: [", "no YAML"),
    (b"a: &x 1\nb: *x\n", "YAML alias"), (TEXT.encode() + b"study: other\n", "stands twice"),
    (TEXT.replace("seed: 3", "seed: 3\nimport: os.system").encode(), "import: Extra inputs"),
    (TEXT.replace("seed: 3", "seed: !!python/object/apply:os.getcwd []").encode(), "no YAML"),
    (TEXT.replace("schema_version: 1", "schema_version: 2").encode(), "schema_version"),
    (b"#" * (MAX_PROTOCOL_BYTES + 1), "too large"), (b"a: 2026-99-99", "no YAML"),
])  # fmt: skip
def test_a_file_that_is_no_protocol_is_refused_in_words(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "protocol.yaml").write_bytes(data)
    with pytest.raises(ProtocolError, match=words):
        read_protocol(tmp_path / "protocol.yaml")


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ProtocolError, match="No such file"):
        read_protocol(tmp_path / "protocol.yaml")


def test_the_file_is_short_enough_for_a_hundred_sites() -> None:
    sites = [{"name": f"site_{i:03d}", "patients": 400, "weight": 0.01} for i in range(100)]
    protocol: Protocol = fake.make_protocol(federation__sites=sites)
    assert len(protocol_yaml(protocol)) < MAX_PROTOCOL_BYTES
