"""Trainers' keys: where they are born, how they travel, and that a study with a secure sum is approved with compared
words only."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from rich.console import Console

from client.cli import site as site_group
from client.deploy.home import SiteHome
from client.deploy.inbox import Inbox
from client.deploy.peer_keys import PeerKey, compare_peers, peer_keys, publish_key, published, read_published
from client.deploy.review import show_review
from client.deploy.trainer_link import TrainerLink
from client.trainer.consent import approve, review, standing
from client.trainer.peers import confirm_peers, read_peers, trainer_key
from client.trainer.site import release
from shared_model.certificates import Role
from shared_model.control import MemberKey
from shared_model.errors import ConfigError, SignatureError, StorageError
from shared_model.signing import SigningKey
from shared_model.strategies import SECURE_SUM_MATRIX
from tests.client.deploy.test_consent import Scene, make_scene

Make = Callable[..., Any]
KEYS = {f"site-{n:02d}": SigningKey.generate().public for n in range(2, 4)}
INVENTED = SigningKey.generate().public


@pytest.fixture(autouse=True)
def _no_power_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def scene(tmp_path: Path, small_study: Make) -> Scene:
    values = {"federation__secure_sum": "masked", "federation__quorum": 3}
    return make_scene(tmp_path, small_study(private=True, sites=3, **values))


def hand_out(home: SiteHome, **keys: Any) -> None:
    """What the coordinator tells the courier of the other sites' keys."""
    inbox = Inbox(home.courier, site="site-01", release=release())
    inbox.keep_members([MemberKey(site=site.replace("_", "-"), role=Role.SITE, node=b"node",
                                  trainer=None if key is None else key.hex) for site, key in keys.items()])  # fmt: skip


def all_keys() -> dict[str, Any]:
    return {site.replace("-", "_"): key for site, key in KEYS.items()}


def test_the_key_is_born_once_for_its_owner_and_its_public_half_is_for_the_courier(scene: Scene) -> None:
    key = publish_key(scene.home)
    assert publish_key(scene.home) == key == trainer_key(scene.home.state).public
    assert stat.S_IMODE((scene.home.state / "audit.key").stat().st_mode) == 0o600
    assert stat.S_IMODE(published(scene.home).stat().st_mode) == 0o644
    assert read_published(published(scene.home)) == key.hex
    told = TrainerLink(scene.home.socket, "site-01", key=published(scene.home)).state()
    assert (told.up, told.key) == (False, key.hex)  # before the trainer runs, which it does after the first approval


@pytest.mark.parametrize("text", ["", "0" * 64, "ab" * 31, "not a key", "ab" * 400])
def test_what_is_no_key_is_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "trainer.pub"
    path.write_text(text)
    assert read_published(path) is None


def test_the_trainer_signs_with_the_key_whose_words_were_compared(scene: Scene) -> None:
    key = publish_key(scene.home)
    approve(scene.home, scene.signed, compared=KEYS)
    site = scene.trainer()
    try:
        assert site.record is not None and site.record.key.public == key
    finally:
        site.close()


@pytest.mark.parametrize("compared", [{}, {"site-02": KEYS["site-02"]}, {"site-99": INVENTED}])
def test_no_secure_sum_is_approved_without_every_peer_s_key(scene: Scene, compared: Any) -> None:
    with pytest.raises(ConfigError, match="were not compared"):
        approve(scene.home, scene.signed, compared=compared)
    assert standing(scene.home, scene.signed.protocol) == "proposed" and read_peers(scene.home.trainer) == {}
    approve(scene.home, scene.signed, compared=KEYS)
    assert standing(scene.home, scene.signed.protocol) == "approved" and read_peers(scene.home.trainer) == KEYS


def test_an_evaluator_and_a_study_without_a_sum_compare_nothing(tmp_path: Path, small_study: Make) -> None:
    values = {"federation__secure_sum": "masked", "federation__quorum": 3}
    held_out = make_scene(tmp_path / "a", small_study("a", sites=3, **values), role=Role.EVALUATOR)
    plain = make_scene(tmp_path / "b", small_study("b", private=True))
    for scene in (held_out, plain):
        approve(scene.home, scene.signed)
        assert standing(scene.home, scene.signed.protocol) == "approved"


def standings(scene: Scene) -> dict[str, str]:
    return {peer.site: peer.standing for peer in peer_keys(scene.home, scene.signed.protocol)}


def test_a_key_is_unknown_new_confirmed_or_changed(scene: Scene) -> None:
    assert standings(scene) == {"site-02": "unknown", "site-03": "unknown"}
    hand_out(scene.home, site_02=KEYS["site-02"], site_03=None, site_99=INVENTED)
    assert standings(scene) == {"site-02": "new", "site-03": "unknown"}
    confirm_peers(scene.home.trainer, {"site-02": KEYS["site-02"], "site-03": KEYS["site-03"]})
    assert standings(scene) == {"site-02": "confirmed", "site-03": "confirmed"}
    hand_out(scene.home, site_02=INVENTED)
    assert standings(scene) == {"site-02": "changed", "site-03": "confirmed"}


def test_a_coordinator_that_has_just_started_takes_no_known_key_away(scene: Scene) -> None:
    hand_out(scene.home, **all_keys())
    hand_out(scene.home, site_02=None, site_03=None)
    assert standings(scene) == {"site-02": "new", "site-03": "new"}


def said(scene: Scene) -> str:
    out = StringIO()
    show_review(scene.home, scene.signed, review(scene.home, scene.signed), Console(file=out, width=250))
    return out.getvalue()


def test_review_shows_the_words_of_every_key_and_what_the_sum_excludes(scene: Scene) -> None:
    before = said(scene)
    assert "not known yet" in before and "made by `mammofed site join`" in before
    own = publish_key(scene.home)
    hand_out(scene.home, **all_keys())
    words = said(scene)
    for key in (own, *KEYS.values()):
        assert key.fingerprint in words
    assert words.count("compare with its people") == 2 and "sum over the sites only" in words
    assert all(name in words for name, why in SECURE_SUM_MATRIX.items() if why)
    confirm_peers(scene.home.trainer, {**KEYS, "site-03": INVENTED})
    words = said(scene)
    assert "compared before" in words and "ANOTHER KEY THAN WAS COMPARED BEFORE" in words


def command(scene: Scene, *options: str, typed: str = "") -> Any:
    return CliRunner().invoke(site_group, ["approve", str(scene.home.folder), scene.signed.protocol.study, *options],
                              input=typed)  # fmt: skip


def test_the_command_asks_for_each_peer_and_takes_no_silence_for_a_yes(scene: Scene) -> None:
    publish_key(scene.home)
    hand_out(scene.home, **all_keys())
    for options, typed in ((("--yes",), ""), ((), "y\ny\nn\n")):
        result = command(scene, *options, typed=typed)
        assert isinstance(result.exception, ConfigError), result.output
        assert standing(scene.home, scene.signed.protocol) == "proposed"
    assert command(scene, typed="y\ny\ny\n").exception is None
    assert read_peers(scene.home.trainer) == KEYS


def test_a_changed_key_is_asked_about_anew_and_never_taken_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(click, "confirm", lambda text: asked.append(text) or False)
    peers = [PeerKey(site="site-02", key=INVENTED, standing="changed"),
             PeerKey(site="site-03", key=KEYS["site-03"], standing="confirmed")]  # fmt: skip
    assert compare_peers(peers, told=False, ask=True) == {}
    assert len(asked) == 1 and asked[0].startswith("site-02 has ANOTHER trainer key than before")
    assert compare_peers(peers, told=False, ask=False) == {}
    assert compare_peers(peers, told=True, ask=False) == {"site-02": INVENTED}


def test_a_list_that_others_could_write_or_a_key_of_another_form_is_not_used(tmp_path: Path) -> None:
    confirm_peers(tmp_path, KEYS)
    path = tmp_path / "peers.json"
    path.chmod(0o644)
    with pytest.raises(StorageError, match="open to other users"):
        read_peers(tmp_path)
    (tmp_path / "audit.key").write_text("no key")
    (tmp_path / "audit.key").chmod(0o600)
    with pytest.raises(SignatureError):
        trainer_key(tmp_path)
