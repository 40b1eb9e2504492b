"""A site's doctor over a real gateway, and each of its checks in its red state."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from client.deploy import doctor, doctor_data, gpu
from client.deploy.doctor import MODEL_BYTES, examine
from client.deploy.home import SiteHome
from client.deploy.identity import Stage, Standing
from client.deploy.line import Line, measure
from client.deploy.proxy import Proxy
from client.deploy.tunnel import Tunnel
from client.privacy.ledger import Ledger, LedgerEntry
from client.trainer.config import SiteConfig
from server.enrolment.gateway import Gateway, Upstream
from server.enrolment.http_guard import TRANSFER_BYTES
from shared_model.certificates import Role, enrolling_server_context
from shared_model.doctor import Check, Level
from shared_model.doctor.page import as_html, as_json
from shared_model.errors import CertificateError, DoctorError
from shared_model.protocol import Protocol
from shared_model.signed_protocol import Coordinator as Signer
from shared_model.signed_protocol import SignedProtocol
from shared_model.signing import SigningKey
from tests.conftest import SmallStudy
from tests.enrolled import DAY, Coordinator, in_a_loop, words

NOWHERE = Upstream(port=9)
SITE = "site-01"


@pytest.fixture
def coordinator(tmp_path: Path) -> Coordinator:
    return Coordinator(tmp_path / "hub", clock=None)


KEY = SigningKey.generate()
HUB = Signer.of("hub", KEY.public)


def make_home(coordinator: Coordinator, study: SmallStudy, *, key: SigningKey | None = KEY) -> SiteHome:
    """A site as `site init`, `join` and `approve` leave it. key: signs the approved protocol; None: nothing was."""
    home = SiteHome.create(study.root / "home", cohort=study.config(SITE).cohort, role=Role.SITE)
    identity = coordinator.begin(SITE, folder=home.folder / "identity")
    coordinator.exchange(identity)
    coordinator.enrolment.confirm(SITE, identity.words(words))
    assert coordinator.exchange(identity)
    text = home.policy_file.read_text()
    if not study.protocol.private:
        text = text.replace("private_only: true", "private_only: false")
    home.policy_file.write_text(text.replace("device: auto", "device: cpu"))
    if key is not None:
        home.trust(HUB)
        approved = SignedProtocol.sign(study.protocol, name="hub", key=key)
        (home.protocols / "unit.json").write_text(approved.to_json())
    return home


def point(home: SiteHome, port: int) -> None:
    path = home.folder / "identity/site.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"port": port}))


def named(checks: Any, name: str) -> Check:
    (found,) = [check for check in checks if check.name == name]
    return found


async def examined_through(door: Gateway, home: SiteHome, **options: Any) -> Any:
    point(home, door.port)
    return await asyncio.to_thread(examine, home, **options)


# --- the whole ---


@in_a_loop
async def test_a_site_in_good_health_is_green_and_its_page_holds_no_place(
    coordinator: Coordinator, small_study: Callable[..., SmallStudy]
) -> None:
    study = small_study(patients=80)
    home = make_home(coordinator, study)
    async with coordinator.gateway(NOWHERE) as door:
        found = await examined_through(door, home)
    wrong = {check.name: check.words for check in found.checks if check.level is Level.RED}
    assert wrong == {} and (found.who, found.role) == (SITE, "site")
    assert named(found.checks, "line").words.startswith("reached over TLS 1.3")
    assert "at both ends" in named(found.checks, "release").words
    assert "unit: 0.5 MB each way" in named(found.checks, "round").words
    assert named(found.checks, "clock").level is Level.GREEN
    assert "its process is not running" in named(found.checks, "trainer").words
    cohort = named(found.checks, "cohort").words
    assert "fits the data contract" in cohort and all(int(part) % 10 == 0 for part in
                                                      [w for w in cohort.split() if w.isdigit()])  # fmt: skip
    for text in (as_html(found), as_json(found)):
        assert str(study.root) not in text and "127.0.0.1" not in text
    assert coordinator.reasons("denied") == []


@in_a_loop
async def test_a_clock_that_is_ahead_of_the_coordinator_s_is_named(
    coordinator: Coordinator, small_study: Callable[..., SmallStudy]
) -> None:
    home = make_home(coordinator, small_study())
    async with coordinator.gateway(NOWHERE, clock=lambda: time.time() - 20.0) as door:
        found = await examined_through(door, home)
    check = named(found.checks, "clock")
    assert check.level is Level.RED and "ahead of the coordinator's" in check.words and "NTP" in check.remedy


@in_a_loop
async def test_a_revoked_site_is_told_by_name(
    coordinator: Coordinator, small_study: Callable[..., SmallStudy]
) -> None:
    home = make_home(coordinator, small_study())
    coordinator.enrolment.revoke(SITE)
    async with coordinator.gateway(NOWHERE) as door:
        found = await examined_through(door, home)
    check = named(found.checks, "line")
    assert (check.level, "revoked" in check.words, "new invitation" in check.remedy) == (Level.RED, True, True)
    with pytest.raises(DoctorError, match="line"):
        found.raise_if_red()


def test_a_coordinator_that_is_not_there_and_a_name_that_is_unknown(
    coordinator: Coordinator, small_study: Callable[..., SmallStudy], monkeypatch: pytest.MonkeyPatch
) -> None:
    home = make_home(coordinator, small_study())
    found = examine(home)  # port 1: nobody listens
    assert named(found.checks, "line").level is Level.RED
    path = home.folder / "identity/site.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"host": "no-such-host.invalid"}))
    found = examine(home)
    assert named(found.checks, "dns").level is Level.RED and "not known here" in named(found.checks, "line").words
    there = Proxy(host="no-such-proxy.invalid", port=3128, credentials="it:secret")
    found = examine(home, proxy=there)
    assert named(found.checks, "proxy").level is Level.RED
    assert named(found.checks, "dns").level is Level.GREEN  # the proxy's business
    assert "no-such-proxy" not in as_html(found) and "secret" not in repr(found)


@in_a_loop
async def test_before_the_certificate_the_door_for_invitations_is_looked_at(
    coordinator: Coordinator, small_study: Callable[..., SmallStudy]
) -> None:
    study = small_study()
    home = SiteHome.create(study.root / "home", cohort=study.config(SITE).cohort, role=Role.SITE)
    home.policy_file.write_text(home.policy_file.read_text().replace("device: auto", "device: cpu"))
    coordinator.begin(SITE, folder=home.folder / "identity")
    path = home.folder / "identity/site.json"

    async def check(port: int) -> Check:
        path.write_text(json.dumps(json.loads(path.read_text()) | {"enrol_port": port}))
        return named((await asyncio.to_thread(examine, home)).checks, "line")

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    other = Coordinator(home.folder / "other")
    for hub, level in ((coordinator, Level.GREEN), (other, Level.RED)):
        credentials = hub.authority.server_credentials(["localhost"])
        context = enrolling_server_context(credentials, ca_pem=hub.authority.ca_pem)
        async with await asyncio.start_server(talk, "127.0.0.1", 0, ssl=context) as server:
            found = await check(server.sockets[0].getsockname()[1])
        assert found.level is level, found
    assert (await check(1)).level is Level.RED


def test_an_empty_folder_is_red_and_says_what_to_run(tmp_path: Path) -> None:
    found = examine(SiteHome(tmp_path))
    assert "site init" in named(found.checks, "certificate").remedy
    assert named(found.checks, "policy").level is Level.RED


def test_a_key_that_others_can_read_is_red(coordinator: Coordinator, small_study: Callable[..., SmallStudy]) -> None:
    home = make_home(coordinator, small_study())
    (home.folder / "identity/tls.pem").chmod(0o644)
    check = named(examine(home).checks, "certificate")
    assert check.level is Level.RED and "open to other users" in check.words and "new keys" in check.remedy


def test_the_command_writes_page_and_json_and_ends_with_its_code(
    coordinator: Coordinator, small_study: Callable[..., SmallStudy], tmp_path: Path
) -> None:
    from client.deploy.doctor_cli import doctor as command

    home = make_home(coordinator, small_study())
    options = [str(home.folder), "--html", str(tmp_path / "d.html"), "--json", str(tmp_path / "d.json")]
    ended = CliRunner().invoke(command, options)
    assert isinstance(ended.exception, DoctorError) and ended.exception.exit_code == 80
    assert "must be put right" in ended.output
    assert json.loads((tmp_path / "d.json").read_text())["worst"] == "red" and (tmp_path / "d.html").exists()


# --- the line ---


@in_a_loop
async def test_the_line_is_measured_in_both_directions_and_its_size_is_bounded(
    coordinator: Coordinator, tmp_path: Path
) -> None:
    async with coordinator.gateway(NOWHERE) as door:
        identity = coordinator.enrol("north", port=door.port)
        line = await measure(Tunnel(identity))
        assert line.hello["site"] == "north" and line.rtt_s > 0 and line.ahead_s is not None
        assert line.up is not None and line.down is not None and min(line.up, line.down) > 0
        async with Tunnel(identity).connection() as (reader, writer):
            writer.write(b"POST /mammofed/transfer HTTP/1.1\r\nHost: x\r\nContent-Length: 4194305\r\n\r\n")
            assert (await reader.readline()).split()[1] == b"413"
        async with Tunnel(identity).connection() as (reader, writer):
            writer.write(b"GET /mammofed/transfer HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert TRANSFER_BYTES < len(await reader.read(-1)) < TRANSFER_BYTES + 1000
        async with Tunnel(identity).connection() as (reader, writer):
            writer.write(b"DELETE /mammofed/transfer HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await reader.readline()).split()[1] == b"403"


@in_a_loop
async def test_nobody_measures_without_admission(coordinator: Coordinator) -> None:
    async with coordinator.gateway(NOWHERE) as door:
        identity = coordinator.enrol("north", port=door.port)
        coordinator.enrolment.revoke("north")
        tunnel = Tunnel(identity)
        with pytest.raises(CertificateError) as refused:
            await measure(tunnel)
    assert (refused.value.reason, tunnel.status.reason) == ("revoked", "revoked")


def line(up: float | None, **changes: Any) -> Line:
    values: dict[str, Any] = {"hello": {"site": "north"}, "rtt_s": 0.02, "ahead_s": 0.0, "up": up, "down": up}
    return Line(**values | changes)


def asks(deadline_s: float) -> Any:
    protocol = type("P", (), {})()
    protocol.study, protocol.model = "s", type("M", (), {"size": "full"})()
    protocol.federation = type("F", (), {"deadline_s": deadline_s})()
    return protocol


@pytest.mark.parametrize(("deadline", "level"), [(600, "green"), (100, "amber"), (40, "red")])
def test_a_line_that_is_too_slow_for_the_deadline_is_red(deadline: float, level: str) -> None:
    (check,) = doctor.round_time(line(1e6), [asks(deadline)])  # 8 Mbit/s: two times 30 s and the polling
    assert check.level == level and "67 s" in check.words


def test_without_a_transfer_nothing_is_predicted_and_without_a_study_the_largest_model_is() -> None:
    assert doctor.round_time(line(None), []) == []
    (check,) = doctor.round_time(line(1e7), [])
    assert check.level is Level.GREEN and check.words.startswith("the largest model: 30.1 MB")


def test_the_sizes_of_models_are_those_that_are_built() -> None:
    from shared_model.contract import load_contract
    from shared_model.fusion import FusionConfig, arrays_of, build_model

    for size, stated in MODEL_BYTES.items():
        config = FusionConfig(size=size, fusion="gated", n_clinical=load_contract().n_features,  # type: ignore[arg-type]
                              height=128, width=128)
        built = sum(array.nbytes for array in arrays_of(build_model(config, seed=1, prevalence=0.3)).values())
        assert 0.95 * stated <= built <= stated, size


def test_another_release_at_the_other_end_is_red() -> None:
    assert doctor.releases("0.1.0", "0.2.0").level is Level.RED
    assert doctor.releases("0.1.0", "0.1.0").level is Level.GREEN
    assert doctor.releases("0.1.0", None).level is Level.GREEN


@pytest.mark.parametrize(
    ("stage", "days", "level"),
    [(Stage.READY, 29, "green"), (Stage.RENEW, 20, "green"), (Stage.RENEW, 3, "amber"), (Stage.EXPIRED, -1, "red"),
     (Stage.NOT_YET_VALID, 40, "red"), (Stage.ENROLLING, None, "amber")],
)  # fmt: skip
def test_a_certificate(stage: Stage, days: float | None, level: str) -> None:
    assert doctor.certificate(Standing(stage=stage, words="cause; cure", days_left=days)).level == level


@in_a_loop
async def test_an_expired_certificate_says_what_to_do(
    coordinator: Coordinator, small_study: Callable[..., SmallStudy]
) -> None:
    home = make_home(coordinator, small_study())
    found = await asyncio.to_thread(examine, home, now=lambda: time.time() + 31 * DAY)
    check = named(found.checks, "certificate")
    assert check.level is Level.RED and "ran out" in check.words and "new invitation" in check.remedy


def test_flower_s_programs() -> None:
    assert doctor.programs(lambda name: None).level is Level.RED
    assert doctor.programs(lambda name: name).level is Level.GREEN


# --- GPU ---

SEES = gpu.TorchSees(torch="2.13.0", cuda="12.8", names=("H100",), free=(70 << 30,))


@pytest.mark.parametrize(
    ("wanted", "seen", "driver", "level", "words"),
    [
        ("cpu", SEES, "570", "green", "not used"),
        ("auto", SEES, "570", "green", "H100"),
        ("cuda:0", SEES, "570", "green", "70 GiB free"),
        ("cuda:1", SEES, "570", "red", "torch sees 1"),
        ("cuda", gpu.TorchSees(torch="2.13.0+cpu", cuda=None), None, "red", "driver is not installed"),
        ("cuda", gpu.TorchSees(torch="2.13.0+cpu", cuda=None), "570", "red", "a build for the CPU"),
        ("cuda", gpu.TorchSees(torch="2.13.0", cuda="12.8", error="RuntimeError: too old"), "450", "red", "too old"),
        ("cuda", gpu.TorchSees(torch="2.13.0", cuda="12.8"), "570", "red", "sees no GPU"),
        ("auto", gpu.TorchSees(torch="2.13.0+cpu", cuda=None), None, "green", "there is none"),
        ("auto", gpu.TorchSees(torch="2.13.0+cpu", cuda=None), "570", "amber", "would compute on the CPU"),
        ("cuda", gpu.TorchSees(torch="2", cuda="12", names=("T4",), free=(1 << 30,)), "570", "amber", "1 GiB free"),
    ],
)  # fmt: skip
def test_gpu(wanted: str, seen: gpu.TorchSees, driver: str | None, level: str, words: str) -> None:
    check = gpu.gpu(wanted, seen, driver)
    assert check.level == level and words in check.words


def test_torch_is_asked_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = gpu.torch_sees()
    assert seen.torch.startswith("2.13") and seen.error == ""
    monkeypatch.setattr(gpu.sys, "executable", "/no/such/python")
    assert gpu.torch_sees().error == "torch cannot be started"
    monkeypatch.setattr(gpu, "_PROBE", "import time; time.sleep(60)")
    monkeypatch.undo()


def test_without_nvidia_s_program_there_is_no_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu.driver_version() is None
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 570.86.10\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert gpu.driver_version() == "570.86.10"
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    assert gpu.driver_version() is None


# --- the trainer's side ---


@pytest.fixture
def site(small_study: Callable[..., SmallStudy]) -> tuple[SiteConfig, Protocol, SmallStudy]:
    study = small_study(private=True, patients=80)
    limits = {"epsilon_limit": 8.0, "delta_limit": 1e-5, "private_only": True}
    return study.config(SITE).model_copy(update=limits), study.protocol, study


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"epsilon_limit": None}, "epsilon_limit"), ({"delta_limit": None}, "delta_limit"),
     ({"private_only": False}, "private_only")],
)  # fmt: skip
def test_a_policy_that_leaves_something_open_is_amber(
    site: tuple[SiteConfig, Protocol, SmallStudy], changes: dict[str, object], words: str
) -> None:
    assert named(doctor_data.policy(site[0]), "policy").level is Level.GREEN
    check = named(doctor_data.policy(site[0].model_copy(update=changes)), "policy")
    assert check.level is Level.AMBER and words in check.remedy
    evaluator = site[0].model_copy(update={**changes, "role": "evaluator"})
    assert named(doctor_data.policy(evaluator), "policy").level is Level.GREEN


def test_an_approved_study_that_the_trainer_will_refuse_is_red(site: tuple[SiteConfig, Protocol, SmallStudy]) -> None:
    config, protocol, _ = site
    assert named(doctor_data.terms(config, protocol), "terms").level is Level.GREEN
    stranger = config.model_copy(update={"site": "elsewhere"})
    strict = config.model_copy(update={"delta_limit": 1e-9})
    public = protocol.model_copy(update={"privacy": protocol.privacy.model_copy(update={"mode": "none"})})
    for check, said in (
        (doctor_data.terms(stranger, protocol), "no part"), (doctor_data.terms(strict, protocol), "delta"),
        (doctor_data.terms(config, public), "without differential privacy"),
    ):  # fmt: skip
        assert named(check, "terms").level is Level.RED and said in named(check, "terms").words


def test_a_split_that_was_changed_is_red(site: tuple[SiteConfig, Protocol, SmallStudy]) -> None:
    config = site[0]
    config.state.mkdir()
    (config.state / "split.json").write_text(json.dumps({"salt": "unit", "fractions": {"train": 0.7, "test": 0.3}}))
    assert named(doctor_data.policy(config), "split").level is Level.GREEN
    changed = config.model_copy(update={"salt": "another"})
    assert named(doctor_data.policy(changed), "split").level is Level.RED


def test_a_cohort_that_does_not_fit_is_red(site: tuple[SiteConfig, Protocol, SmallStudy]) -> None:
    config, protocol, study = site
    (check,) = doctor_data.cohort_of(config, [protocol])
    assert check.level is Level.GREEN
    other = protocol.model_copy(update={"pipeline": protocol.pipeline.model_copy(update={"sha256": "9" * 64})})
    (check,) = doctor_data.cohort_of(config, [protocol, other])
    assert check.level is Level.RED and "imaging pipeline" in check.words and "site import" in check.remedy
    stranger = config.model_copy(update={"cohort": study.config("site-02").cohort})
    (check,) = doctor_data.cohort_of(stranger, [])
    assert check.level is Level.RED and "prepared for site-02" in check.words


def test_a_cohort_of_another_contract_is_red(
    site: tuple[SiteConfig, Protocol, SmallStudy], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Other:
        version, sha256 = "9.9", "9" * 64

    monkeypatch.setattr(doctor_data, "load_contract", Other)
    (check,) = doctor_data.cohort_of(site[0], [])
    assert check.level is Level.RED and "another data contract" in check.words


def test_a_damaged_cohort_and_an_absent_one_are_red(
    coordinator: Coordinator, small_study: Callable[..., SmallStudy]
) -> None:
    study = small_study()
    home, cohort = make_home(coordinator, study), study.config(SITE).cohort
    labels = cohort / "labels.npy"
    labels.write_bytes(labels.read_bytes()[:-1] + b"\x07")
    assert named(examine(home).checks, "cohort").level is Level.RED
    shutil.rmtree(cohort)
    assert named(examine(home).checks, "cohort").level is Level.RED


@pytest.mark.parametrize(
    ("now", "end", "limit", "level"), [(0, 3, 8, "green"), (5, 9, 8, "amber"), (8, 9, 8, "red"), (8, 8, 8, "green")]
)
def test_a_budget(now: float, end: float, limit: float, level: str) -> None:
    assert doctor_data.budget("s", now=now, end=end, limit=limit).level == level


def test_the_prediction_counts_the_rounds_that_are_left_once(site: tuple[SiteConfig, Protocol, SmallStudy]) -> None:
    from client.privacy.accountant import Account

    config, protocol, _ = site
    whole = Account.from_lists(protocol.mechanisms(protocol.rounds)).epsilon(delta=protocol.privacy.delta)
    (check,) = doctor_data.budget_of(config, protocol)
    assert f"epsilon 0.00 spent, {whole:.2f} predicted" in check.words
    entry = LedgerEntry(
        group="train", study=protocol.study, protocol_sha256=protocol.sha256, round=1, attempt=1,
        noise_multiplier=protocol.noise_multiplier(1), sample_rate=protocol.sample_rate(1), steps=protocol.steps(1),
    )  # fmt: skip
    Ledger(config.state / "ledger.json").reserve(entry, budget=8.0, delta=protocol.privacy.delta)
    (check,) = doctor_data.budget_of(config, protocol)
    assert f"{whole:.2f} predicted" in check.words and "epsilon 0.00 spent" not in check.words
    tight = config.model_copy(update={"epsilon_limit": 0.1})
    assert doctor_data.budget_of(tight, protocol)[0].level is Level.RED


def test_a_damaged_ledger_is_red(coordinator: Coordinator, small_study: Callable[..., SmallStudy]) -> None:
    home = make_home(coordinator, small_study(private=True))
    state = home.state
    state.mkdir(exist_ok=True)
    (state / "ledger.json").write_text("{}")
    check = named(examine(home).checks, "budget")
    assert check.level is Level.RED and "damaged" in check.words and str(state) not in check.words


def test_approved_protocols_are_read_under_the_coordinator_s_signature(
    coordinator: Coordinator, small_study: Callable[..., SmallStudy]
) -> None:
    home = make_home(coordinator, small_study(), key=SigningKey.generate())
    assert named(examine(home).checks, "protocol").level is Level.RED
    (home.protocols / "unit.json").unlink()
    found = examine(home).checks
    assert "none is approved" in named(found, "protocols").words and "trainer" not in {check.name for check in found}


def test_a_trainer_that_answers_and_one_that_died(
    coordinator: Coordinator, small_study: Callable[..., SmallStudy], tmp_path: Path
) -> None:
    import threading

    from client.trainer.server import listening
    from client.trainer.service import TrainerService

    config, socket = small_study().config(SITE), tmp_path / "t.sock"
    assert doctor.trainer_of(socket, config, "0.1.0").level is Level.AMBER
    service = TrainerService(config, compute=threading.Lock())
    with contextlib.closing(service.site), listening({SITE: service}, socket):
        assert doctor.trainer_of(socket, config, "0.1.0").level is Level.GREEN
        assert doctor.trainer_of(socket, config, "0.2.0").level is Level.RED
    socket.touch()  # what a killed trainer leaves
    (check,) = doctor.examined("trainer", "Trainer", lambda: doctor.trainer_of(socket, config, "0.1.0"))
    assert check.level is Level.RED and "start it again" in check.remedy


def test_an_audit_log_that_was_changed_is_red(coordinator: Coordinator, small_study: Callable[..., SmallStudy]) -> None:
    from shared_model.audit import AuditLog

    home = make_home(coordinator, small_study())
    path = home.courier / "audit.jsonl"
    with AuditLog(path, owner="site-01", key=SigningKey.generate()) as log:
        log.append("beat", round=1)
    assert named(examine(home).checks, "audit").level is Level.GREEN
    path.write_bytes(path.read_bytes().replace(b'"round":1', b'"round":2'))
    check = named(examine(home).checks, "audit")
    assert check.level is Level.RED and "line" in check.words and str(home.folder) not in check.words


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_a_role_s_user_is_told_what_it_may_not_read_and_that_is_no_fault(
    coordinator: Coordinator, tmp_path: Path, study_maker: Callable[..., SmallStudy]
) -> None:
    nobody = 65534
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to others
        root = Path(folder)
        home = make_home(coordinator, study_maker(root / "s"))
        for path in (root, root / "s", home.folder):
            path.chmod(0o755)
        os.seteuid(nobody)
        try:
            as_nobody = examine(home)
        finally:
            os.seteuid(0)
    levels = {check.name: check.level for check in as_nobody.checks}
    assert levels["certificate"] is levels["policy"] is levels["audit"] is Level.AMBER
    assert "may not read it" in named(as_nobody.checks, "policy").words
    assert Level.RED not in levels.values(), as_nobody


def test_the_doctor_changes_nothing(coordinator: Coordinator, small_study: Callable[..., SmallStudy]) -> None:
    home = make_home(coordinator, small_study(private=True))

    def everything() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in sorted(home.folder.rglob("*")) if path.is_file()}

    before = everything()
    examine(home)
    assert everything() == before
    assert home.identity().standing().stage is Stage.READY
