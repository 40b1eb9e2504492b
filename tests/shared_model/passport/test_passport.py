"""A passport says what the study recorded, and any changed byte of it or of its files is found, offline."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from server.release import write_release
from server.reporting import Signature, write_passport
from shared_model.audit import AuditLog
from shared_model.errors import MammoFedError, PassportError, RoundError, SignatureError
from shared_model.map_figures import LOCALISATION
from shared_model.passport import PASSPORT, SBOM, SignedPassport, verify
from shared_model.passport.signed import MAX_PASSPORT_BYTES
from shared_model.released import RELEASE, ReleasedModel
from shared_model.signing import Purpose, SigningKey
from tests.finished import finish, measure

CHANGED = (PASSPORT, "model.safetensors", "protocol.json", "initial.safetensors", "summary.json", RELEASE, LOCALISATION,
           SBOM)  # fmt: skip
ROUNDS = [{"name": "all", "rounds": 3, "objective": "fusion", "learning_rate": 0.05, "encoder_rate": 1.0}]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, study_maker: Callable[..., Any]) -> Path:
    study = study_maker(tmp_path_factory.mktemp("run") / "study", private=True, training__phases=ROUNDS)
    run_dir = finish(study)
    measure(run_dir)
    write_passport(run_dir, Signature.of_run())
    return run_dir


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """What a coordinator would hand out, in a folder of its own."""
    for name in CHANGED:
        (tmp_path / name).write_bytes((run / name).read_bytes())
    return tmp_path


def test_it_says_what_the_study_recorded(run: Path) -> None:
    said = verify(run).signed.passport
    assert said.status == "COMPLETE" and (said.rounds_closed, said.rounds_planned) == (3, 3)
    spans = {site.name: [(s.outcome, s.first, s.last) for s in site.rounds] for site in said.sites}
    assert spans["site-01"] == [("contributed", 1, 1), ("late", 2, 2), ("contributed", 3, 3)]
    assert spans["site-02"] == [("contributed", 1, 3)]
    spent = {row.site: row for row in said.privacy.sites}
    assert spent["site-01"].epsilon == pytest.approx(4.5) and spent["site-01"].unheard and not spent["site-02"].unheard
    assert (said.privacy.unit, said.privacy.adjacency, said.privacy.accountant) == (
        "patient", "add_or_remove_one", "prv")  # fmt: skip
    fused = said.metrics.test["fused"]
    assert fused.n == 90 and fused.positives == 30 and fused.auc_low < fused.auc < fused.auc_high  # type: ignore[operator]
    assert set(said.model.thresholds) == {"fused", "image", "clinical", "rule_out"} and said.model.temperature
    assert {g.level: g.score is None for g in said.metrics.groups} == {"A": False, "B": False, "C": True, "D": True}
    assert said.metrics.sites["site-02"].n == pytest.approx(41.3)
    assert said.record.head is None and said.record.journal_sha256
    assert any("too few to say anything: vendor C, vendor D" in limit for limit in said.limits)
    assert any("no medical device" in limit for limit in said.limits)
    assert any("(as known when this was signed): HiResCAM. On 120" in limit for limit in said.limits)


def test_bill_of_materials_names_what_is_installed(run: Path) -> None:
    document = json.loads((run / SBOM).read_text())
    names = {component["name"] for component in document["components"]}
    assert {"torch", "numpy", "opacus", "cryptography"} <= names and "pytest" not in names
    assert len(names) == verify(run).signed.passport.software.components
    assert all(component["version"] for component in document["components"])
    references = {component["bom-ref"] for component in document["components"]} | {"mammofed"}
    assert all(set(entry["dependsOn"]) <= references for entry in document["dependencies"])


def test_what_a_coordinator_releases_is_under_the_passports_signature(run: Path, tmp_path: Path) -> None:
    written = write_release(run, tmp_path / "model")
    assert RELEASE in written.vouched.checked
    assert (tmp_path / "model" / RELEASE).read_bytes() == (run / RELEASE).read_bytes()
    assert ReleasedModel.read(tmp_path / "model").release == written.release
    values = json.loads((tmp_path / "model" / RELEASE).read_text())
    (tmp_path / "model" / RELEASE).write_text(json.dumps(values | {"selection_positives": 1}))
    with pytest.raises(PassportError, match=RELEASE):
        ReleasedModel.read(tmp_path / "model")


def test_a_passport_is_written_once(run: Path) -> None:
    before = (run / PASSPORT).read_bytes()
    assert write_passport(run, Signature.of_run()).to_json() == before == (run / PASSPORT).read_bytes()


@pytest.mark.parametrize("name", CHANGED)
def test_one_changed_byte_is_found_wherever_it_is(copy: Path, name: str) -> None:
    verify(copy)
    data = (copy / name).read_bytes()
    for at in {0, 1, *range(7, len(data), max(1, len(data) // 23)), len(data) - 1}:
        changed = bytearray(data)
        changed[at] ^= 1
        (copy / name).write_bytes(bytes(changed))
        with pytest.raises((PassportError, SignatureError)):
            verify(copy)
    for other in (data + b" ", data[:-1], b""):
        (copy / name).write_bytes(other)
        with pytest.raises((PassportError, SignatureError)):
            verify(copy)


def test_what_is_not_needed_may_be_absent_and_the_weights_may_not(copy: Path) -> None:
    (copy / SBOM).unlink()
    (copy / "summary.json").unlink()
    (copy / RELEASE).unlink()
    (copy / LOCALISATION).unlink()
    assert verify(copy).absent == (RELEASE, "summary.json", LOCALISATION, SBOM)
    (copy / "model.safetensors").unlink()
    with pytest.raises(PassportError, match="cannot be read"):
        verify(copy)


def rewritten(path: Path, change: Callable[[dict[str, Any]], None], *, key: SigningKey | None = None) -> None:
    """The file with other content, in its own form; signed again where a key is given."""
    values = json.loads(path.read_bytes())
    change(values)
    if key is not None:
        values["signer"]["key"] = key.public.hex
        parts = (json.dumps(values[n], sort_keys=True, separators=(",", ":")) for n in ("signer", "passport"))
        values["signature"] = key.sign(Purpose.PASSPORT, b"\0".join(part.encode() for part in parts))
    path.write_text(json.dumps(values, indent=1) + "\n")


def test_a_rosier_figure_is_found_and_a_forger_needs_another_key(copy: Path) -> None:
    genuine = SignedPassport.read(copy / PASSPORT).signer.verify_key

    def rosier(values: dict[str, Any]) -> None:
        values["passport"]["metrics"]["test"]["fused"]["auc"] = 0.94

    rewritten(copy / PASSPORT, rosier)
    with pytest.raises(SignatureError):
        verify(copy)
    rewritten(copy / PASSPORT, rosier, key=SigningKey.generate())
    verify(copy)  # by its own word
    with pytest.raises(SignatureError, match="another key"):
        verify(copy, key=genuine)


def test_a_signature_for_something_else_is_none(copy: Path) -> None:
    key = SigningKey.generate()
    values = json.loads((copy / PASSPORT).read_bytes())
    values["signer"]["key"] = key.public.hex
    parts = (json.dumps(values[n], sort_keys=True, separators=(",", ":")) for n in ("signer", "passport"))
    values["signature"] = key.sign(Purpose.PROTOCOL, b"\0".join(part.encode() for part in parts))
    (copy / PASSPORT).write_text(json.dumps(values, indent=1) + "\n")
    with pytest.raises(SignatureError):
        verify(copy)


def test_a_signed_path_does_not_lead_out_of_the_folder(copy: Path) -> None:
    def elsewhere(values: dict[str, Any]) -> None:
        values["passport"]["files"][0]["name"] = "../../etc/passwd"

    rewritten(copy / PASSPORT, elsewhere, key=SigningKey.generate())
    with pytest.raises(PassportError, match=r"files\.0\.name"):
        verify(copy)


def hostile() -> Iterator[bytes]:
    yield b"[" * 200_000
    yield b'{"schema_version": 1, "signer": {}, "passport": {}, "signature": "00"}'
    yield b"\xff\xfe"
    yield b"{" + b" " * MAX_PASSPORT_BYTES
    yield b"null"


@pytest.mark.parametrize("data", list(hostile()), ids=["deep", "empty", "bytes", "large", "null"])
def test_hostile_files_are_refused_in_words(copy: Path, data: bytes) -> None:
    (copy / PASSPORT).write_bytes(data)
    with pytest.raises(MammoFedError) as refused:
        verify(copy)
    assert refused.value.exit_code in (33, 82) and len(str(refused.value)) < 1000


def test_reading_is_bounded_and_never_waits_for_a_pipe(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    os.mkfifo(copy / "model.safetensors")
    with pytest.raises(PassportError, match="no regular file"):
        verify(copy)


def test_a_coordinator_signs_with_its_log_s_head(
    tmp_path: Path, study_maker: Callable[..., Any]
) -> None:
    run_dir = finish(study_maker(tmp_path / "study", private=True, training__phases=ROUNDS))
    key = SigningKey.generate()
    with AuditLog(tmp_path / "audit.jsonl", owner="hub", key=key) as log:
        write_passport(run_dir, Signature(kind="coordinator", name="hub", key=key, head=log.head))
        found = verify(run_dir, key=key.public).signed
        head = found.passport.record.head
        assert found.signer.name == "hub" and head is not None and head.head == log.head().head.model_copy(
            update={"time": head.head.time})  # fmt: skip


def test_no_passport_without_a_chosen_model(tmp_path: Path, study_maker: Callable[..., Any]) -> None:
    run_dir = finish(study_maker(tmp_path / "study", private=True, training__phases=ROUNDS))
    (run_dir / "model.safetensors").unlink()
    with pytest.raises(RoundError, match="no chosen model"):
        write_passport(run_dir, Signature.of_run())
    assert not (run_dir / PASSPORT).exists()


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "mammofed", "passport", *arguments], capture_output=True, text=True,
                          check=False, env={**os.environ, "COLUMNS": "100"})  # fmt: skip


def test_commands_and_their_exit_codes(copy: Path) -> None:
    shown = command("show", str(copy))
    assert shown.returncode == 0, shown.stderr
    for words in ("Films + table  90     30", "late 2", "4.50 of 8.00", "Limits of use", "forgotten"):
        assert words in shown.stdout
    assert json.loads(command("show", "--json", str(copy)).stdout)["study"] == "unit"
    assert command("verify", str(copy)).returncode == 0
    assert command("verify", str(copy), "--key", "0f" * 32).returncode == 33
    (copy / "summary.json").write_text("{}")
    found = command("verify", str(copy))
    assert found.returncode == 82 and "summary.json is not the file that the passport names" in found.stderr
