"""A passport vouches for the heat maps' figures: measured before it, after a coordinator signed, or anew by hand."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from client.inference.scorer import Scorer
from server.deploy.home import CoordinatorFile, CoordinatorHome
from server.deploy.passports import sign_passport
from server.deploy.studies import StudyFolder, Wanted, Wish, coordinator_signature
from server.release import write_release
from server.reporting import Signature, write_passport
from server.reporting.report import write_report
from server.rounds import summary
from shared_model.audit import verify as verify_log
from shared_model.contract import load_contract
from shared_model.errors import ConfigError, PassportError, StorageError
from shared_model.map_figures import LOCALISATION, NOT_HERE, NOT_MEASURED, UNSIGNED, write_reason
from shared_model.passport import PASSPORT, SignedPassport, former_name, verify
from shared_model.passport.cli import passport as passport_command
from shared_model.released import ReleasedModel
from shared_model.signing import SigningKey
from simulations import localise_cli, vouching
from simulations.localise_cli import localise_model
from simulations.vouching import APART, HUB, measure_and_sign
from tests.finished import finish, measure

ROUNDS = [{"name": "all", "rounds": 3, "objective": "fusion", "learning_rate": 0.05, "encoder_rate": 1.0}]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, study_maker: Callable[..., Any]) -> Path:
    run_dir = finish(study_maker(tmp_path_factory.mktemp("made") / "study", private=True, training__phases=ROUNDS))
    (run_dir / "launch.json").write_text("{}")
    return run_dir


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "study"))


@pytest.fixture
def measuring(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What a measurement finds, in the order of measurements; the real one is tested in test_localisation."""
    found: list[float] = []
    monkeypatch.setattr(vouching, "measure_maps", lambda c, run_dir, say, call: measure(run_dir, pointing=found.pop(0)))
    return found


@pytest.fixture
def meanwhile(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], Any]]:
    """What somebody else does while maps are measured, measurement by measurement."""
    acts: list[Callable[[], Any]] = []

    def measured(config: Any, run_dir: Path, say: Any, call: Any) -> None:
        measure(run_dir, pointing=0.6)
        acts.pop(0)()

    monkeypatch.setattr(vouching, "measure_maps", measured)
    return acts


def hub_of(run_dir: Path) -> CoordinatorHome:
    """The coordinator of a rehearsal, whose study is the run directory."""
    settings = CoordinatorFile(name="hub", title="Hub", hosts=("localhost",), port=1, enrol_port=2, link_port=3)
    return CoordinatorHome.create(run_dir / HUB, settings)


def end(run_dir: Path) -> Any:
    return measure_and_sign({}, run_dir, lambda words: None, lambda *arguments: "").passport


def limit(passport: Any) -> str:
    (said,) = [words for words in passport.limits if words.startswith("Heat maps")]
    return str(said)


def test_maps_are_measured_first_and_a_resumed_end_measures_nothing(run: Path, measuring: list[float]) -> None:
    measuring.append(0.6)
    assert "in 60% of films" in limit(end(run))
    before = (run / PASSPORT).read_bytes()
    assert LOCALISATION in verify(run).checked
    end(run)
    assert (run / PASSPORT).read_bytes() == before and not measuring


def test_a_rehearsed_coordinator_signs_again_what_was_measured_after_it_had_signed(
    run: Path, measuring: list[float]
) -> None:
    home = hub_of(run)
    first = write_passport(run, coordinator_signature(home, head=None))
    assert NOT_MEASURED in limit(first.passport)
    measuring.append(0.7)
    said = end(run)
    found = verify(run, key=home.signing_key.public)
    assert found.signed.signer.kind == "coordinator" and LOCALISATION in found.checked and not found.unsigned
    assert "in 70% of films" in limit(said) and NOT_MEASURED not in limit(said)
    assert said.replaces == (first.sha256,) and said.metrics == first.passport.metrics
    assert (run / former_name(first.sha256)).read_bytes() == first.to_json(), "what was handed out is kept"
    head = said.record.head
    assert head is not None and verify_log(home.audit_file, heads=[head]).covered == head.head.sequence
    assert found.signed.sha256 in home.audit_file.read_text()


def test_a_later_release_that_would_say_more_leaves_the_signed_summary(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def more(journal: Any, protocol: Any) -> dict[str, Any]:
        return genuine(journal, protocol) | {"bytes": {"up": 1, "down": 2}}

    genuine = summary.summarise
    before = summary.write_summary(run)
    write_passport(run, Signature.of_run())
    monkeypatch.setattr(summary, "summarise", more)
    assert summary.write_summary(run) == before
    assert "summary.json" in verify(run).checked
    (run / PASSPORT).unlink()
    assert summary.write_summary(run)["bytes"] == {"up": 1, "down": 2}, "unsigned, it is written anew"


def test_an_end_that_finds_something_changed_says_so_and_signs_nothing(run: Path, measuring: list[float]) -> None:
    first = write_passport(run, Signature.of_run())
    (run / "summary.json").write_text((run / "summary.json").read_text() + " ")
    said: list[str] = []
    assert measure_and_sign({}, run, said.append, lambda *arguments: "").sha256 == first.sha256
    assert len(said) == 1 and "not signed again" in said[0] and "summary.json" in said[0]
    assert not (run / LOCALISATION).exists() and (run / PASSPORT).read_bytes() == first.to_json()


@pytest.mark.parametrize("name", ["model.safetensors", "release.json", "summary.json"])
def test_what_is_changed_while_maps_are_measured_is_not_signed(run: Path, name: str, meanwhile: list[Any]) -> None:
    """Minutes lie between the check of a directory and its new signature."""
    first = write_passport(run, Signature.of_run())
    meanwhile.append(lambda: (run / name).write_bytes((run / name).read_bytes() + b" "))
    said: list[str] = []
    assert measure_and_sign({}, run, said.append, lambda *arguments: "").sha256 == first.sha256
    assert len(said) == 1 and "not signed again" in said[0] and name in said[0]
    assert (run / PASSPORT).read_bytes() == first.to_json()
    with pytest.raises(PassportError, match=name):
        verify(run)


def test_a_file_that_is_gone_stays_named_and_another_in_its_place_is_found(
    run: Path, measuring: list[float]
) -> None:
    write_passport(run, Signature.of_run())
    genuine = (run / "release.json").read_bytes()
    (run / "release.json").unlink()
    measuring.append(0.6)
    said = end(run)
    assert "release.json" in {part.name for part in said.files} and "release.json" in verify(run).absent
    (run / "release.json").write_bytes(genuine.replace(b"0.", b"0.9", 1))
    assert end(run) == said, "nothing is signed over it"
    with pytest.raises(PassportError, match=r"release\.json"):
        verify(run)
    (run / "release.json").write_bytes(genuine)
    assert "release.json" in verify(run).checked


def test_a_release_that_came_later_is_signed_only_as_the_journal_gives_it(run: Path, meanwhile: list[Any]) -> None:
    """A passport of an earlier release names none."""
    write_passport(run, Signature.of_run())
    genuine, named = (run / "release.json").read_bytes(), SignedPassport.read(run / PASSPORT).passport
    older = named.model_copy(update={"files": tuple(part for part in named.files if part.name != "release.json")})
    first = SignedPassport.sign(older, kind="run", name="run", key=SigningKey.generate())
    (run / PASSPORT).write_bytes(first.to_json())
    (run / "release.json").write_bytes(genuine.replace(b"0.", b"0.9", 1))
    meanwhile += [lambda: None, lambda: None]
    said: list[str] = []
    assert measure_and_sign({}, run, said.append, lambda *arguments: "").sha256 == first.sha256
    assert "release.json is not what the study's journal gives" in said[0]
    (run / "release.json").write_bytes(genuine)
    assert "release.json" in {part.name for part in end(run).files}


def test_only_what_is_said_of_maps_is_said_anew(run: Path, measuring: list[float]) -> None:
    """Which women there were is no longer asked: launch.json is not signed."""
    first = write_passport(run, Signature.of_run()).passport
    (run / "launch.json").write_text(json.dumps({"cohort": {"kind": "synthetic"}}))
    measuring.append(0.6)
    said = end(run)
    others = [[words for words in one.limits if not words.startswith("Heat maps")] for one in (first, said)]
    assert others[0] == others[1] and said.privacy == first.privacy
    assert [words[:9] for words in said.limits] == [words[:9] for words in first.limits], "in its place"


def test_a_coordinator_signs_no_passport_of_another_key(run: Path, measuring: list[float]) -> None:
    home = hub_of(run)
    made = write_passport(run, Signature.of_run()).passport
    forged = SignedPassport.sign(made, kind="coordinator", name="hub", key=SigningKey.generate())
    (run / PASSPORT).write_bytes(forged.to_json())
    measuring.append(0.6)
    said: list[str] = []
    assert measure_and_sign({}, run, said.append, lambda *arguments: "").sha256 == forged.sha256
    assert "another key" in said[0] and "passport_signed" not in home.audit_file.read_text()


@pytest.mark.usefixtures("quick_localise")
def test_too_few_women_do_not_take_figures_away_that_are_signed(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def few(folder: Path, run: Any, source: Path, *, name: str, **options: Any) -> Any:
        sha256 = json.loads((folder / name).read_text())["model_sha256"]
        write_reason(folder / name, model_sha256=sha256, cohort="women", reason="1 woman, fewer than 2")
        return localise_cli.MapFigures.model_validate_json((folder / name).read_bytes())

    measure(run, pointing=0.6)
    first = write_passport(run, Signature.of_run())
    monkeypatch.setattr(localise_cli, "localise_run", few)
    with pytest.raises(ConfigError, match="too few women"):
        localise(run)
    assert LOCALISATION in verify(run).checked and verify(run).signed == first


@pytest.mark.usefixtures("quick_localise")
def test_figures_that_cannot_be_signed_leave_those_that_are(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(before: Any, signature: Signature) -> Any:
        raise StorageError("no space left")

    measure(run, pointing=0.6)
    write_passport(run, Signature.of_run())
    kept = (run / LOCALISATION).read_bytes()
    monkeypatch.setattr(vouching, "sign_again", full)
    with pytest.raises(StorageError, match="no space"):
        localise(run)
    assert (run / LOCALISATION).read_bytes() == kept and LOCALISATION in verify(run).checked
    assert b"0.9" in (run / APART).read_bytes(), "what was measured is not lost"


@pytest.mark.usefixtures("quick_localise")
def test_the_command_signs_a_run_s_passport_again_over_what_it_measures(run: Path) -> None:
    measure(run, pointing=0.6)
    first = write_passport(run, Signature.of_run())
    write_report(run)
    assert "signed again over it" in localise(run)
    found = verify(run)
    assert LOCALISATION in found.checked and found.signed.passport.replaces == (first.sha256,)
    assert "in 90% of films" in limit(found.signed.passport)
    assert f"Replaces        {first.sha256}" in CliRunner().invoke(passport_command, ["show", str(run)]).output
    data = bytearray((run / LOCALISATION).read_bytes())
    data[data.index(b"0.9")] ^= 1
    (run / LOCALISATION).write_bytes(bytes(data))
    with pytest.raises(PassportError, match=LOCALISATION):
        verify(run)
    with pytest.raises(PassportError, match=LOCALISATION):
        localise(run)
    assert (run / LOCALISATION).read_bytes() == bytes(data), "what was changed is not signed again"


@pytest.mark.usefixtures("quick_localise")
def test_a_passport_that_cannot_be_signed_here_is_not_broken(run: Path, tmp_path: Path) -> None:
    measure(run, pointing=0.6)
    write_passport(run, Signature.of_run())
    model = tmp_path / "model"
    write_release(run, model)
    kept = (model / LOCALISATION).read_bytes()
    assert "nobody signs" in localise(model, tmp_path)
    assert (model / LOCALISATION).read_bytes() == kept and (model / APART).exists()
    released = ReleasedModel.read(model)
    assert Scorer(released, load_contract()).map_words().count("in 60% of films") == 1
    (model / LOCALISATION).unlink()
    assert Scorer(ReleasedModel.read(model), load_contract()).map_words() == NOT_HERE


@pytest.mark.usefixtures("quick_localise")
def test_what_nobody_signed_says_so_until_the_coordinator_signs(made: Path, tmp_path: Path) -> None:
    home = hub_of(tmp_path)
    run = Path(shutil.copytree(made, home.study("unit"), dirs_exist_ok=True))
    StudyFolder(run).want(Wanted(wish=Wish.ENDED))
    with home.audit_log():
        sign_passport(home, "unit")
    assert "server passport HOME unit" in localise(run)
    found = verify(run)
    assert found.unsigned == (LOCALISATION,) and NOT_MEASURED in limit(found.signed.passport)
    shown = CliRunner().invoke(passport_command, ["verify", str(run)])
    assert shown.exit_code == 0 and f"Unsigned   {LOCALISATION}" in shown.output
    write_release(run, tmp_path / "model")
    assert Scorer(ReleasedModel.read(tmp_path / "model"), load_contract()).map_words().endswith(UNSIGNED)
    assert UNSIGNED in " ".join(write_report(run).read_text().split()).replace("&#39;", "'")
    with home.audit_log():
        _, signed = sign_passport(home, "unit")
        assert sign_passport(home, "unit")[1].sha256 == signed.sha256, "again, nothing is new"
    assert verify(run, key=home.signing_key.public).unsigned == () and "in 90% of films" in limit(signed.passport)
    assert UNSIGNED not in " ".join(write_report(run).read_text().split()).replace("&#39;", "'")


@pytest.fixture
def quick_localise(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command around a measurement that finds 90 %."""
    def measured(folder: Path, run: Any, source: Path, *, name: str, **options: Any) -> Any:
        if not (folder / "summary.json").exists():
            (folder / name).write_text(json.dumps(json.loads((folder / LOCALISATION).read_text())))
        else:
            measure(folder, pointing=0.9)
        return localise_cli.MapFigures.model_validate_json((folder / name).read_bytes())

    monkeypatch.setattr(localise_cli, "localise_run", measured)
    monkeypatch.setattr(localise_cli, "check_source", lambda run, source: None)
    monkeypatch.setattr(localise_cli, "settings_of", lambda folder: {})
    monkeypatch.setattr(localise_cli, "read_run", lambda folder, settings: None)
    monkeypatch.setattr(localise_cli, "_released", lambda folder: None)
    monkeypatch.setattr(localise_cli, "own_women", lambda folder: folder)


def localise(folder: Path, source: Path | None = None) -> str:
    """What the command prints."""
    with localise_cli.Console().capture() as _, CliRunner().isolation() as (out, *_rest):
        localise_model(folder, source, women=3, methods=("hirescam",))
        return " ".join(out.getvalue().decode().split())
