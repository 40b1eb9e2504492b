"""A coordinator's doctor: each check in its red state, and the whole over real doors."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from server import doctor
from server.deploy.home import CoordinatorFile, CoordinatorHome
from server.doctor import Seen, examine
from server.enrolment.gateway import Gateway, Upstream
from shared_model.certificates import loopback_credentials, server_context
from shared_model.doctor import Check, Level
from shared_model.doctor.page import as_html
from shared_model.errors import ConfigError, DoctorError
from simulations.ports import held_ports
from tests.enrolled import DAY, Coordinator, in_a_loop


@pytest.fixture
def home(tmp_path: Path) -> Iterator[CoordinatorHome]:
    with held_ports(3) as (port, enrol_port, link_port):
        settings = CoordinatorFile(name="hub", title="Hub", hosts=("localhost",), listen="127.0.0.1", port=port,
                                   enrol_port=enrol_port, link_port=link_port)  # fmt: skip
        yield CoordinatorHome.create(tmp_path / "hub", settings)


def named(checks: Any, name: str) -> Check:
    (found,) = [check for check in checks if check.name == name]
    return found


def by_name(home: CoordinatorHome) -> dict[str, Check]:
    return {check.name: check for check in examine(home).checks}


@in_a_loop
async def test_a_coordinator_in_good_health(home: CoordinatorHome) -> None:
    authority = home.authority()
    context = server_context(authority.server_credentials(home.settings.hosts), ca_pem=authority.ca_pem)
    with home.registry() as registry, socket.create_server(("127.0.0.1", home.settings.link_port)):
        async with (
            Gateway(context=context, registry=registry, upstream=Upstream(port=9), host="127.0.0.1",
                    port=home.settings.port),
            Gateway(context=context, registry=registry, upstream=Upstream(port=9), host="127.0.0.1",
                    port=home.settings.enrol_port),
        ):  # fmt: skip
            found = await asyncio.to_thread(examine, home)
    assert {check.name: check.words for check in found.checks if check.level is Level.RED} == {}
    assert "listens on the loopback alone" in named(found.checks, "superlink").words
    assert "TLSv1.3" in named(found.checks, "door").words and named(found.checks, "door").level is Level.GREEN
    assert named(found.checks, "audit").level is Level.GREEN
    assert str(home.folder.parent) not in as_html(found)
    found.raise_if_red()


def test_a_daemon_that_does_not_run_is_said_without_alarm(home: CoordinatorHome) -> None:
    found = by_name(home)
    assert [found[name].level for name in ("superlink", "door", "enrol_door")] == [Level.AMBER] * 3
    assert all("server serve" in found[name].remedy for name in ("superlink", "door", "enrol_door"))


def test_a_superlink_that_others_can_reach_is_red() -> None:
    def seen(*addresses: str) -> Level:
        return doctor.superlink([(ip_address(address), 18000) for address in addresses], 18000).level

    assert seen("127.0.0.1") is seen("::1") is seen("::ffff:127.0.0.1") is Level.GREEN
    assert seen("127.0.0.1", "10.0.0.5") is seen("0.0.0.0") is seen("::") is seen("::ffff:10.0.0.5") is Level.RED
    assert doctor.superlink([(ip_address("0.0.0.0"), 443)], 18000).level is Level.AMBER


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET, "0.0.0.0"),
                                                 (socket.AF_INET6, "::1")])  # fmt: skip
def test_listeners_are_read_from_the_kernel(family: socket.AddressFamily, address: str) -> None:
    try:
        listener = socket.create_server((address, 0), family=family)
    except OSError:
        pytest.skip("no IPv6 here")
    with listener:
        assert (ip_address(address), listener.getsockname()[1]) in doctor.listeners()


def test_a_really_exposed_port_is_found(home: CoordinatorHome) -> None:
    with socket.create_server(("0.0.0.0", home.settings.link_port)):
        assert by_name(home)["superlink"].level is Level.RED


@pytest.mark.parametrize(
    ("seen", "level"),
    [(None, "amber"), (Seen(tls="TLSv1.2", days=90), "red"), (Seen(tls="TLSv1.3", days=-1), "red"),
     (Seen(tls="TLSv1.3", days=20), "amber"), (Seen(tls="TLSv1.3", days=200), "green")],
)  # fmt: skip
def test_doors(seen: Seen | None, level: str) -> None:
    assert doctor.door(seen, name="door", title="Door", port=8443).level == level


@in_a_loop
async def test_somebody_else_s_door_is_red(home: CoordinatorHome, tmp_path: Path) -> None:
    both, _ = loopback_credentials(now=time.time())
    (tmp_path / "other.pem").write_bytes(both)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "other.pem")

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_server(talk, "127.0.0.1", home.settings.port, ssl=context):
        found = await asyncio.to_thread(by_name, home)
    assert found["door"].level is Level.RED


def test_keys_and_records_that_are_damaged_are_red(home: CoordinatorHome) -> None:
    def red(damage: Callable[[], object], *names: str) -> None:
        damage()
        found = by_name(home)
        assert {name: found[name].level for name in names} == dict.fromkeys(names, Level.RED)
        assert all(found[name].remedy and str(home.folder) not in found[name].words for name in names)

    folder = home.folder
    log = (folder / "audit.jsonl").read_bytes()
    red(lambda: (folder / "audit.jsonl").write_bytes(log.replace(b"hub", b"hut", 1)), "audit")
    red((folder / "audit.jsonl").unlink, "audit")
    red(lambda: (folder / "ca/ca.key").chmod(0o644), "ca")
    red(lambda: (folder / "registry/registry.sqlite").write_bytes(b"no database" * 100), "members")
    red((folder / "registry/registry.sqlite").unlink, "members")
    red(lambda: (folder / "signing.key").write_bytes(b"x"), "signing_key")


def test_nginx_whose_list_runs_out_shuts_everybody_out_and_is_said_before(home: CoordinatorHome) -> None:
    from server.deploy.nginx import NginxFront

    assert doctor.nginx(home, time.time()) == []
    NginxFront(home).write(listen="127.0.0.2", port=8443, enrol_port=8444)
    for days, level in ((0, Level.GREEN), (4, Level.AMBER), (8, Level.RED)):
        found = {check.name: check for check in doctor.nginx(home, time.time() + days * DAY)}
        assert found["crl"].level is level and found["nginx"].level is Level.AMBER
    (home.folder / "nginx/nginx.pid").write_text(f"{os.getpid()}")  # somebody else has the number by now
    assert {check.name: check for check in doctor.nginx(home, time.time())}["nginx"].level is Level.AMBER


def test_an_authority_that_ends_is_amber_and_one_that_ended_red(home: CoordinatorHome) -> None:
    assert doctor.authority(home, time.time()).level is Level.GREEN
    assert doctor.authority(home, time.time() + 3400 * DAY).level is Level.AMBER
    assert doctor.authority(home, time.time() + 3700 * DAY).level is Level.RED


def test_members_who_wait_and_whose_certificate_runs_out_are_named(tmp_path: Path) -> None:
    hub = Coordinator(tmp_path)
    hub.enrol("north")
    hub.exchange(hub.begin("south"))
    hub.enrol("west")
    hub.enrolment.revoke("west")

    def check(days: float) -> Check:
        return doctor.members(hub.registry.members(), hub.registry.issued(), hub.clock() + days * DAY)

    assert check(0).words == "1 enrolled; waiting to be confirmed: south" and "server enrol" in check(0).remedy
    assert "runs out this week: north" in check(25).words
    assert "certificate ran out: north" in check(31).words and "west" not in check(31).words
    assert check(31).level is Level.AMBER


def test_flower_s_programs() -> None:
    assert doctor.programs(lambda name: None).level is Level.RED
    assert doctor.programs(lambda name: name).level is Level.GREEN


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a folder away needs root")
def test_another_user_s_home_is_refused_before_it_is_touched(home: CoordinatorHome) -> None:
    os.chown(home.folder, 65534, 65534)
    with pytest.raises(ConfigError, match="another user"):
        examine(home)


def test_the_command_ends_with_its_code(home: CoordinatorHome, tmp_path: Path) -> None:
    from server.doctor_cli import doctor as command

    well = CliRunner().invoke(command, [str(home.folder), "--html", str(tmp_path / "d.html")])
    assert well.exit_code == 0 and (tmp_path / "d.html").exists()
    (home.folder / "audit.jsonl").unlink()
    ill = CliRunner().invoke(command, [str(home.folder)])
    assert isinstance(ill.exception, DoctorError) and "audit" in str(ill.exception)
