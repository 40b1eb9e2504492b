"""The bench against plain Flower: what is counted, and that a study that was none is refused; no time is asserted."""

from __future__ import annotations

import socket
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from server.rounds.loop import run_study
from shared_model.errors import RoundError
from simulations.benchmarks.bench import ON_REQUEST, SECTIONS
from simulations.benchmarks.deployment.compare import FLOOR, OVERRIDES, ROUNDS, SITES, rows_of
from simulations.benchmarks.deployment.contest import Cost, cost_of, opened
from simulations.benchmarks.deployment.federation import Node, Settings
from simulations.benchmarks.deployment.wire import Relay, between
from simulations.benchmarks.peers.probe import Measurement
from simulations.composition import compose_config
from tests import fake_grid as fake


def test_the_section_runs_only_when_it_is_named() -> None:
    assert "deployment" in SECTIONS and "deployment" in ON_REQUEST


def test_settings_survive_the_way_to_the_process(tmp_path: Path) -> None:
    settings = Settings(out="/o", app="/a", nodes=(Node(name="a", config={"site": "a", "partition-id": 1}),))
    settings.write(tmp_path / "settings.json")
    assert Settings.read(tmp_path / "settings.json") == settings


def test_a_relay_counts_every_byte_of_each_direction_and_of_several_doors() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, Relay() as relay:

        def answer() -> None:
            for _ in range(2):
                connection, _ = server.accept()
                with connection:
                    while data := connection.recv(1 << 16):
                        connection.sendall(data * 2)

        there = threading.Thread(target=answer)
        there.start()
        port = server.getsockname()[1]
        relay.traffic.sample()
        for door in (relay.to(port), relay.to(port)):
            with socket.create_connection(("127.0.0.1", door)) as client:
                client.sendall(b"x" * 1000)
                client.shutdown(socket.SHUT_WR)
                received = b""
                while part := client.recv(1 << 16):
                    received += part
                assert received == b"x" * 2000
        there.join()
        assert (relay.traffic.up, relay.traffic.down) == (2000, 4000)


def test_what_happened_between_two_moments_is_read_straight_between_samples() -> None:
    timeline = [(10.0, 0, 0), (20.0, 100, 50), (30.0, 100, 250)]
    assert between(timeline, 10.0, 30.0) == (100.0, 250.0)
    assert between(timeline, 15.0, 25.0) == (50.0, 125.0)
    assert between(timeline, 30.0, 99.0) == (0.0, 0.0)


def test_the_first_round_is_left_out_of_a_rounds_cost() -> None:
    measured = Measurement(began=100.0, timeline=[(0.0, 0.0), (10.0, 50.0), (40.0, 110.0)])
    wire = [(100.0, 0, 0), (110.0, 9_000, 9_000), (140.0, 9_300, 9_600)]
    cost = cost_of(measured, wire, [100.0, 110.0, 120.0, 140.0], messages=3)
    assert cost == Cost(seconds=15.0, cpu_s=30.0, bytes_up=150.0, bytes_down=300.0, messages=3)
    assert cost_of(measured, wire, [110.0, 140.0], messages=3).seconds == 30.0


def test_rows_divide_plain_flowers_figures_by_ours() -> None:
    ours = Cost(seconds=10.0, cpu_s=4.0, bytes_up=3e3, bytes_down=3e3, messages=3)
    theirs = Cost(seconds=40.0, cpu_s=32.0, bytes_up=6e3, bytes_down=9e3, messages=6, train_cpu_s=15.0)
    rows = {row.name: row for row in rows_of(theirs, ours, weights=1000)}
    floor = rows["CPU of a round: plain Flower, train and evaluate"]
    assert (floor.ratio, floor.at_least, floor.met) == (8.0, FLOOR, True)
    assert rows["CPU of its training alone"].ratio == 3.75
    assert rows["bytes to the sites a round: plain Flower"].ratio == 3.0
    worse = {row.name: row for row in rows_of(theirs, replace(ours, cpu_s=9.0), weights=1000)}
    assert worse[floor.name].met is False


def test_the_study_is_private_evaluated_each_round_and_needs_every_site() -> None:
    config = compose_config(OVERRIDES)
    assert (config["privacy"]["mode"], config["evaluation"]["every"], config["rounds"]) == ("patient", 1, ROUNDS)
    assert config["strategy"]["quorum"] == config["sites"] == SITES


def test_a_round_that_a_site_missed_is_no_measurement(tmp_path: Path) -> None:
    protocol = fake.make_protocol()
    grid = fake.make_grid(protocol)
    study = {"protocol": protocol, "initial": fake.initial_weights(), "observer": lambda _: None}
    run_study(grid=grid, run_dir=tmp_path / "whole", stop=threading.Event(), **study)  # type: ignore[arg-type]
    assert len(opened(tmp_path / "whole", sites=4)) == 4
    grid = fake.make_grid(protocol)
    grid.party("ash").faults[2] = fake.lost
    run_study(grid=grid, run_dir=tmp_path / "holed", stop=threading.Event(), **study)  # type: ignore[arg-type]
    with pytest.raises(RoundError, match="did not hear every site"):
        opened(tmp_path / "holed", sites=4)
