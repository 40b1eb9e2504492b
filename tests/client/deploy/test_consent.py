"""A site's consent: what an administrator is told, what is refused; a yes and a no are what the trainer does."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from client.deploy.home import SiteHome
from client.deploy.identity import SiteIdentity
from client.deploy.inbox import Inbox
from client.deploy.policy_file import Policy
from client.deploy.review import show_review
from client.privacy.accountant import Account
from client.privacy.ledger import Ledger
from client.trainer.config import SiteConfig
from client.trainer.consent import approve, decline, proposals, refusals, refused, review, standing
from client.trainer.models import WarmModels
from client.trainer.site import Site, release
from client.trainer.train import answer_train
from server.deploy.explore import exploration_of
from shared_model.certificates import Member, Role
from shared_model.errors import (
    BudgetExhaustedError,
    CohortError,
    ConfigError,
    MammoFedError,
    PrivacyError,
    ProtocolError,
    SignatureError,
)
from shared_model.messages import TrainReply, decode
from shared_model.private_files import remove_private, write_private
from shared_model.protocol import Protocol
from shared_model.signed_protocol import Coordinator, SignedProtocol
from shared_model.signing import SigningKey
from tests.conftest import SmallStudy as Study
from tests.conftest import write_cohort
from tests.enrolled import Coordinator as Enroller

NAME = "hub"
KEY, OTHER = SigningKey.generate(), SigningKey.generate()
HUB = Coordinator.of(NAME, KEY.public)


@pytest.fixture(autouse=True)
def _no_power_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def sign(protocol: Protocol, *, key: SigningKey = KEY, name: str = NAME) -> SignedProtocol:
    return SignedProtocol.sign(protocol, name=name, key=key)


@dataclass
class Scene:
    """A site with its home, and a study that was proposed to it."""

    study: Study
    home: SiteHome
    signed: SignedProtocol

    def policy(self, **changes: Any) -> None:
        """The administrator's hand on the policy."""
        values = Policy.read(self.home.policy_file).model_dump(mode="json") | changes
        write_private(self.home.policy_file, Policy.model_validate(values).to_yaml().encode())

    def propose(self, protocol: Protocol, **signer: Any) -> SignedProtocol:
        signed = sign(protocol, **signer)
        write_private(self.home.inbox / f"{protocol.study}-{signed.sha256[:16]}.json", signed.to_json().encode())
        return signed

    def trainer(self) -> Site:
        """The trainer as `site join` would start it, from the files on the disk."""
        text = self.home.trainer_config().to_json()
        path = self.home.trainer / "trainer.json"
        write_private(path, text.encode())
        return Site(SiteConfig.read(path), WarmModels())

    def train(self, site: Site, round_number: int) -> TrainReply:
        request = self.study.train(round_number, protocol_sha256=self.signed.sha256)
        message = decode(answer_train(site, request, self.study.arrays)).message
        assert isinstance(message, TrainReply)
        return message


def make_scene(folder: Path, study: Study, *, site: str = "site-01", role: Role = Role.SITE) -> Scene:
    party = "evaluator" if role is Role.EVALUATOR else site
    home = SiteHome.create(folder / "home", cohort=study.config(party).cohort, role=role)
    enroller = Enroller(folder / "hub")
    invitation = enroller.enrolment.invite(Member(party, role))
    SiteIdentity.begin(home.folder / "identity", invitation, host="localhost", port=1)
    enroller.registry.close()
    Inbox(home.courier, site=party, release=release()).pin(HUB)
    scene = Scene(study, home, sign(study.protocol))
    scene.propose(study.protocol)
    return scene


@pytest.fixture
def scene(tmp_path: Path, small_study: Callable[..., Study]) -> Scene:
    return make_scene(tmp_path, small_study(private=True))


# --- what is told ---


def test_epsilon_is_told_as_the_ledger_has_it_before_and_after(scene: Scene) -> None:
    """Before: nothing. After all rounds, really trained: what the review had said, to the last digit."""
    scene.policy(epsilon_limit=None)
    told = review(scene.home, scene.signed)
    assert told.epsilon_before == 0.0 and told.faults == [] and told.standing == "proposed"
    approve(scene.home, scene.signed)
    site, delta = scene.trainer(), scene.study.protocol.privacy.delta
    try:
        for number in range(1, scene.study.protocol.rounds + 1):
            assert scene.train(site, number).outcome == "trained"
            again = review(scene.home, scene.signed)
            assert again.epsilon_before == site.ledger.spent("train", delta=delta)
            assert again.epsilon_after == told.epsilon_after, "its own rounds are not counted twice"
        assert site.ledger.spent("train", delta=delta) == told.epsilon_after
    finally:
        site.close()


def test_what_other_studies_spent_is_in_both_figures(scene: Scene) -> None:
    protocol = scene.study.protocol
    other = Protocol.create(protocol.model_dump(mode="json") | {"study": "earlier", "seed": 8})
    first = review(scene.home, scene.signed)
    ledger = Ledger(scene.home.state / "ledger.json")
    for number in range(1, 4):
        ledger.reserve(entry(other, number), budget=100.0, delta=1e-5)
    ledger.reserve(entry(other, 1, group="metrics"), budget=100.0, delta=1e-5)  # other patients
    told = review(scene.home, scene.signed)
    rows = [list(row) for row in (*other.mechanisms(3), *protocol.mechanisms(protocol.rounds))]
    assert told.epsilon_before == Account.from_lists([list(m) for m in other.mechanisms(3)]).epsilon(delta=1e-5)
    assert told.epsilon_after == Account.from_lists(rows).epsilon(delta=1e-5) > (first.epsilon_after or 0)


def entry(protocol: Protocol, number: int, **changes: Any) -> Any:
    from client.privacy.ledger import LedgerEntry

    values = {
        "group": "train", "study": protocol.study, "protocol_sha256": protocol.sha256, "round": number, "attempt": 1,
        "noise_multiplier": protocol.noise_multiplier(number), "sample_rate": protocol.sample_rate(number),
        "steps": protocol.steps(number),
    }  # fmt: skip
    return LedgerEntry(**(values | changes))


def test_rounds_that_were_repeated_cost_what_they_cost(scene: Scene) -> None:
    ledger = Ledger(scene.home.state / "ledger.json")
    for number, attempt in itertools.product(range(1, scene.study.protocol.rounds + 1), (1, 2, 3)):
        ledger.reserve(entry(scene.study.protocol, number, attempt=attempt), budget=100.0, delta=1e-5)
    told = review(scene.home, scene.signed)
    assert told.epsilon_after == told.epsilon_before == ledger.spent("train", delta=1e-5)


@pytest.mark.parametrize(("limit", "budget", "whose"), [(1.0, 8.0, "this site's limit, 1"),
                                                         (None, 1.0, "what the study promises over all studies, 1"),
                                                         (0.0, 8.0, "this site's limit, 0")])  # fmt: skip
def test_a_study_beyond_a_budget_is_told_where_the_trainer_abstains(
    tmp_path: Path, small_study: Callable[..., Study], limit: float | None, budget: float, whose: str
) -> None:
    scene = make_scene(tmp_path, small_study(private=True, privacy__epsilon=budget))
    scene.policy(epsilon_limit=limit)
    (words,) = review(scene.home, scene.signed).faults
    assert f"above {whose}" in words and "abstains" in words
    approve(scene.home, scene.signed)
    site = scene.trainer()
    try:
        outcomes = [scene.train(site, number).outcome for number in range(1, scene.study.protocol.rounds + 1)]
    finally:
        site.close()
    assert outcomes[-1] == "abstained" and sorted(outcomes, reverse=True) == outcomes


def test_the_number_of_weights_and_patients_is_what_is_sent_and_trained_on(scene: Scene) -> None:
    told = review(scene.home, scene.signed)
    assert told.parameters == sum(array.size for array in scene.study.arrays.values())
    approve(scene.home, scene.signed)
    site = scene.trainer()
    assert told.patients == len(site.indices("train"))
    site.close()
    assert any(f"{told.parameters:,} weights" in words and "noised" in words for words in told.leaves)


def test_what_leaves_unprotected_is_said_so(tmp_path: Path, small_study: Callable[..., Study]) -> None:
    scene = make_scene(tmp_path, small_study(private=False))
    scene.policy(private_only=False)
    told = review(scene.home, scene.signed)
    assert told.epsilon_before is None and told.epsilon_after is None
    assert "NOT protected by differential privacy" in told.leaves[0] and "training loss" in told.leaves[1]
    shown = screen(scene.home, scene.signed)
    assert "no differential privacy" in shown and "NOT protected" in shown


def test_the_evaluator_is_told_that_nothing_is_trained(tmp_path: Path, small_study: Callable[..., Study]) -> None:
    scene = make_scene(tmp_path, small_study(private=True), role=Role.EVALUATOR)
    told = review(scene.home, scene.signed)
    assert (told.epsilon_before, told.epsilon_after, told.faults) == (None, None, [])
    assert told.patients == 60 and told.leaves == [
        "scores' summary (AUC, thresholds, calibration) of the held-out cohort, no row of a patient"
    ]
    assert "60 women are held out" in screen(scene.home, scene.signed)
    approve(scene.home, scene.signed)
    site = scene.trainer()
    assert site.protocol(scene.signed.sha256, study="unit") == scene.study.protocol
    site.close()


def screen(home: SiteHome, signed: SignedProtocol) -> str:
    console = Console(file=StringIO(), width=200)
    show_review(home, signed, review(home, signed), console)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_the_review_names_who_proposes_what_it_costs_and_who_takes_part(scene: Scene) -> None:
    told, shown = review(scene.home, scene.signed), screen(scene.home, scene.signed)
    for words in ("unit (proposed)", f"hub, key {HUB.key[:16]}", scene.signed.sha256[:16], "site-01, site-02",
                  f"{told.patients} women are trained on", "epsilon 0.00 so far", f"{told.epsilon_after:.2f} after it",
                  "this site's limit 8", "delta 1e-05"):  # fmt: skip
        assert words in shown, words


@pytest.mark.parametrize("noise", [0.0, 4.0])
def test_the_review_of_an_exploration_says_that_women_are_counted_and_nothing_is_trained(
    scene: Scene, noise: float
) -> None:
    third = [{"name": f"site-0{n}", "patients": 30, "weight": 1.0} for n in (1, 2, 3)]
    study = Protocol.create(changed(federation__sites=third, federation__sites_per_round=3)(scene.study))
    shown = screen(scene.home, scene.propose(exploration_of(study, noise=noise)))
    assert "nothing: it is an exploration" in shown and "women are counted" in shown
    assert "one masked sum over 3" in shown
    assert [word for word in ("trained on", "weights", "fusion") if word in shown] == []
    assert ("the sum is exact" in shown, "after it, of" in shown) == (noise == 0, noise > 0)


@pytest.mark.parametrize(("sites", "noise", "told"), [
    ((1, 2, 3, 4), 0.0, ["site-04"]),
    ((1, 2, 4), 0.0, ["site-03", "site-04"]),
    ((1, 2, 3), 0.0, []),  # the same sites: a difference tells what changed at all of them
    ((1, 2, 3, 4, 5, 6), 0.0, []),  # three hide each other
    ((1, 2, 3, 4), 4.0, []),  # each site's own noise stays, whatever is subtracted
])  # fmt: skip
def test_the_review_says_what_the_difference_to_an_earlier_sum_would_tell(
    scene: Scene, sites: tuple[int, ...], noise: float, told: list[str]
) -> None:
    first, second = exploring(scene, "first", (1, 2, 3)), exploring(scene, "second", sites, noise)
    assert review(scene.home, second).apart == [], "nothing else is approved"
    write_private(scene.home.protocols / "first.json", first.to_json().encode())
    found = review(scene.home, second)
    assert len(found.apart) == bool(told) and all(site in found.apart[0] for site in told)
    shown = " ".join(screen(scene.home, second).split())
    assert ("first sums counts of women exactly over nearly the same sites" in shown) == bool(told)
    assert review(scene.home, scene.signed).apart == [], "a study that sums nothing exactly"


def test_joint_figures_of_two_studies_are_told_apart_too_and_counts_of_another_kind_are_not(scene: Scene) -> None:
    def study(name: str, sites: tuple[int, ...], metrics: str = "joint") -> SignedProtocol:
        found = summing(scene, sites).model_dump(mode="json") | {"study": name}
        found["federation"]["secure_sum"], found["privacy"]["metrics"] = "masked", metrics
        return sign(Protocol.create(found))

    write_private(scene.home.protocols / "first.json", study("first", (1, 2, 3)).to_json().encode())
    (words,) = review(scene.home, study("second", (1, 2, 3, 4))).apart
    assert "first sums counts of test women exactly" in words and words.endswith("site-04")
    assert review(scene.home, study("second", (1, 2, 3, 4), metrics="none")).apart == []
    assert review(scene.home, exploring(scene, "second", (1, 2, 3, 4))).apart == []


def test_an_approved_protocol_that_cannot_be_read_is_not_passed_over(scene: Scene) -> None:
    for name, data in (("torn", b"{"), ("old", b'{"protocol": {"study": "old"}}'), ("list", b"[]")):
        write_private(scene.home.protocols / f"{name}.json", data)
    found = review(scene.home, exploring(scene, "second", (1, 2, 3))).apart
    assert [words.split()[0] for words in found] == ["list", "old", "torn"]
    assert all("not compared" in words for words in found)


def summing(scene: Scene, sites: tuple[int, ...]) -> Protocol:
    rows = [{"name": f"site-0{n}", "patients": 30, "weight": 1.0} for n in sites]
    return Protocol.create(changed(federation__sites=rows, federation__sites_per_round=len(rows),
                                   federation__quorum=3)(scene.study))  # fmt: skip


def exploring(scene: Scene, name: str, sites: tuple[int, ...], noise: float = 0.0) -> SignedProtocol:
    return sign(exploration_of(summing(scene, sites), name=name, noise=noise))


# --- what is refused: the review says it, and the trainer does it ---


def other_contract(study: Study) -> dict[str, Any]:
    values = study.protocol.model_dump(mode="json")
    values["contract"]["sha256"] = "5" * 64
    return values


def changed(**changes: Any) -> Callable[[Study], dict[str, Any]]:
    def change(study: Study) -> dict[str, Any]:
        values: dict[str, Any] = study.protocol.model_dump(mode="json")
        for dotted, value in changes.items():
            *path, last = dotted.split("__")
            place = values
            for part in path:
                place = place[part]
            place[last] = value
        return values

    return change


# A home draws its salt, so of 30 women 24 or so are trained on: more than twice 3 in all homes but 1 of 10^11.
SITES = [{"name": "site-01", "patients": 3, "weight": 1.0}, {"name": "site-02", "patients": 30, "weight": 1.0}]
ABROAD = [{"name": "abroad", "patients": 30, "weight": 1.0}, {"name": "site-02", "patients": 30, "weight": 1.0}]
NOT_PRIVATE = {"privacy__mode": "none", "privacy__noise_multiplier": 0.0, "training__engine": "batch"}


@pytest.mark.parametrize(("change", "words", "error"), [
    (changed(**NOT_PRIVATE), "without differential privacy", PrivacyError),
    (changed(privacy__delta=1e-3), r"its delta is greater than this site allows", PrivacyError),
    (other_contract, "another data contract", CohortError),
    (changed(contract__n_features=3), "another number of clinical features", CohortError),
    (changed(pipeline__sha256="6" * 64), "another imaging pipeline", CohortError),
    (changed(pipeline__height=64), "another film size", CohortError),
    (changed(federation__sites=SITES), "about 3 patients; there are far more", CohortError),
    (changed(federation__sites=ABROAD), "site-01 has no part in it", MammoFedError),
], ids=["not-private", "delta", "contract", "features", "pipeline", "film", "size", "no-part"])  # fmt: skip
def test_what_the_trainer_refuses_is_in_the_review(
    scene: Scene, change: Callable[[Study], dict[str, Any]], words: str, error: type[MammoFedError]
) -> None:
    signed = scene.propose(Protocol.create(change(scene.study)))
    assert any(words in fault for fault in refusals(scene.home, signed)), refusals(scene.home, signed)
    assert any(words in fault for fault in review(scene.home, signed).faults)
    approve(scene.home, signed)  # a person may; the trainer stands above
    site = scene.trainer()
    try:
        with pytest.raises(error):
            site.protocol(signed.sha256, study=signed.protocol.study)
    finally:
        site.close()


def test_what_the_review_finds_well_the_trainer_serves(scene: Scene) -> None:
    assert refusals(scene.home, scene.signed) == [] == list(review(scene.home, scene.signed).faults)
    approve(scene.home, scene.signed)
    site = scene.trainer()
    assert site.protocol(scene.signed.sha256, study="unit") == scene.study.protocol
    site.close()


def test_a_limit_on_epsilon_is_no_refusal_and_the_ledger_holds_it(scene: Scene) -> None:
    scene.policy(epsilon_limit=0.5)
    assert refusals(scene.home, scene.signed) == []
    with pytest.raises(BudgetExhaustedError):
        Ledger(scene.home.state / "ledger.json").reserve(entry(scene.study.protocol, 1), budget=0.5, delta=1e-5)


# --- whose letters count ---


def test_letters_of_others_changed_ones_and_those_of_another_release_are_named_and_not_offered(scene: Scene) -> None:
    values = scene.study.protocol.model_dump(mode="json")
    scene.propose(Protocol.create(values | {"study": "forged"}), key=OTHER)
    scene.propose(Protocol.create(values | {"study": "renamed"}), name="another-hub")
    scene.propose(Protocol.create(values | {"study": "old", "release": "0.0.9"}))
    good = scene.propose(Protocol.create(values | {"study": "letter"}))
    path = scene.home.inbox / f"letter-{good.sha256[:16]}.json"
    write_private(path, path.read_bytes().replace(b'"epsilon": 8.0', b'"epsilon": 9.0'))
    write_private(scene.home.inbox / "nonsense.json", b"\xff{")
    assert list(proposals(scene.home, release=release())) == ["unit"]
    why = {name.split("-")[0].removesuffix(".json"): words
           for name, words in refused(scene.home, release=release()).items()}  # fmt: skip
    assert set(why) == {"forged", "renamed", "old", "letter", "nonsense"}
    assert "not of the coordinator" in why["forged"] and "not of the coordinator" in why["renamed"]
    assert "another release" in why["old"] and "signature" in why["letter"] and "not JSON" in why["nonsense"]


def test_before_its_enrolment_a_site_is_offered_nothing(scene: Scene) -> None:
    remove_private(scene.home.courier / "coordinator.json")
    with pytest.raises(ConfigError, match="no certificate yet"):
        proposals(scene.home, release=release())


def test_a_courier_cannot_exchange_the_coordinator_that_was_accepted(scene: Scene) -> None:
    approve(scene.home, scene.signed)
    evil = Coordinator.of(NAME, OTHER.public)
    write_private(scene.home.courier / "coordinator.json", evil.model_dump_json().encode())
    forged = scene.propose(Protocol.create(scene.study.protocol.model_dump(mode="json") | {"study": "evil"}), key=OTHER)
    with pytest.raises(SignatureError, match=r"not the one that this site accepted.*six words"):
        proposals(scene.home, release=release())
    with pytest.raises(SignatureError, match="not the one that this site accepted"):
        approve(scene.home, forged)
    assert scene.home.trusted_coordinator() == HUB
    write_private(scene.home.protocols / "evil.json", forged.to_json().encode())  # even were it there
    site = scene.trainer()
    assert list(site.approved()) == [scene.signed.sha256]
    site.close()


def test_a_courier_cannot_exchange_the_coordinator_while_a_person_reads_its_words(scene: Scene) -> None:
    """The words on the screen were of who signed; the file of the courier is another one when the yes comes."""
    (signed,) = proposals(scene.home, release=release()).values()
    write_private(scene.home.courier / "coordinator.json",
                  Coordinator.of(NAME, OTHER.public).model_dump_json().encode())  # fmt: skip
    approve(scene.home, signed)
    assert scene.home.trusted_coordinator() == signed.coordinator == HUB


# --- yes and no ---


def test_a_no_after_a_yes_stops_the_trainer_that_runs_and_a_yes_after_it_goes_on(scene: Scene) -> None:
    approve(scene.home, scene.signed)
    approve(scene.home, scene.signed)  # again is fine
    site = scene.trainer()
    try:
        assert scene.train(site, 1).outcome == "trained"
        assert decline(scene.home, "unit", release=release())
        assert decline(scene.home, "unit", release=release())
        assert standing(scene.home, scene.study.protocol) == "declined"
        spent = site.ledger.spent("train", delta=1e-5)
        with pytest.raises(ProtocolError, match="has not approved this protocol"):
            scene.train(site, 2)
        assert site.ledger.spent("train", delta=1e-5) == spent
        approve(scene.home, scene.signed)
        assert standing(scene.home, scene.study.protocol) == "approved"
        assert scene.train(site, 2).outcome == "trained"
    finally:
        site.close()


@pytest.mark.parametrize("hostile", ["empty inbox", "another coordinator", "damaged coordinator"])
def test_a_no_needs_nothing_of_the_couriers(scene: Scene, hostile: str) -> None:
    approve(scene.home, scene.signed)
    if hostile == "empty inbox":
        for path in scene.home.inbox.iterdir():
            path.unlink()
    elif hostile == "another coordinator":
        evil = Coordinator.of(NAME, OTHER.public)
        write_private(scene.home.courier / "coordinator.json", evil.model_dump_json().encode())
    else:
        write_private(scene.home.courier / "coordinator.json", b"{")
    site = scene.trainer()
    assert decline(scene.home, "unit", release=release())
    assert site.approved() == {} and standing(scene.home, scene.study.protocol) == "declined"
    site.close()


def test_a_no_to_one_study_is_none_to_another_of_a_like_name(scene: Scene) -> None:
    other = scene.propose(Protocol.create(scene.study.protocol.model_dump(mode="json") | {"study": "unit-2"}))
    approve(scene.home, scene.signed)
    approve(scene.home, other)
    assert decline(scene.home, "unit", release=release())
    assert standing(scene.home, other.protocol) == "approved"
    assert not decline(scene.home, "../unit-2", release=release()) and not decline(scene.home, "*", release=release())


def test_a_changed_protocol_is_another_one_and_needs_its_own_yes(scene: Scene) -> None:
    approve(scene.home, scene.signed)
    other = scene.propose(Protocol.create(scene.study.protocol.model_dump(mode="json") | {"seed": 8}))
    assert standing(scene.home, other.protocol) == "proposed"
    site = scene.trainer()
    with pytest.raises(ProtocolError, match="has not approved"):
        site.protocol(other.sha256, study="unit")
    site.close()


def test_the_trainer_learns_who_it_is_with_the_first_yes_and_needs_no_file_of_the_couriers_after_it(
    scene: Scene,
) -> None:
    with pytest.raises(ConfigError, match="nothing was approved at this site yet"):
        scene.home.trainer_config()
    approve(scene.home, scene.signed)
    before = scene.home.trainer_config()
    (scene.home.folder / "identity").rename(scene.home.folder / "gone")
    (scene.home.folder / "courier").rename(scene.home.folder / "gone-too")
    assert scene.home.trainer_config() == before and (before.site, before.role) == ("site-01", "site")


def test_what_a_killed_yes_leaves_is_no_or_all_of_it(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    for last in range(1, 5):
        with monkeypatch.context() as patches:
            count = itertools.count(1)
            real = Path.replace

            def replace(self: Path, target: Path, count: Any = count, last: int = last, real: Any = real) -> Any:
                if next(count) == last:
                    raise Killed
                return real(self, target)

            patches.setattr(Path, "replace", replace)
            try:
                approve(scene.home, scene.signed)
            except Killed:
                assert standing(scene.home, scene.study.protocol) == "proposed"
                continue
            break
    assert standing(scene.home, scene.study.protocol) == "approved" and last == 4
    scene.trainer().close()


def test_a_cohort_of_another_site_is_refused_by_the_trainer(scene: Scene, tmp_path: Path) -> None:
    write_cohort(tmp_path / "other", site="elsewhere", patients=30, seed=5)
    scene.policy(cohort=str(tmp_path / "other"))
    approve(scene.home, scene.signed)
    assert any("prepared for another site" in words for words in refusals(scene.home, scene.signed))
    with pytest.raises(CohortError, match="another site"):
        scene.trainer()


def test_the_splits_secret_is_in_no_file_of_the_couriers(scene: Scene) -> None:
    salt = Policy.read(scene.home.policy_file).salt
    approve(scene.home, scene.signed)
    scene.trainer().close()
    for path in scene.home.courier.rglob("*"):
        assert not path.is_file() or salt.encode() not in path.read_bytes()
    assert json.loads((scene.home.state / "split.json").read_text())["salt"] == salt
