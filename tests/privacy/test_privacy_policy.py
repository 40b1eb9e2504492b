"""The policy clamp as a table: what a server may ask, and what a site makes of it; nothing unknown passes."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from client.privacy.policy import LINES, Decision, PrivacyPolicy, decide
from shared_model.clamp import MOST_RAISE, accepted_noise, raised
from shared_model.errors import PrivacyError, ProtocolError
from shared_model.protocol import Protocol

PROTOCOL: Protocol = sys.modules["site_fixtures"].make_protocol()  # conftest's; hypothesis takes no fixture
Make = Callable[..., Protocol]
STRICT = PrivacyPolicy(private_only=True, epsilon_limit=8.0, delta_limit=1e-5, least_noise=0.5, greatest_clip=2.0,
                       greatest_sample_rate=0.3, most_rounds=500, least_cohort=10, secure_sum="allowed",
                       metrics="final")  # fmt: skip


def unchecked(protocol: Protocol, **changes: Any) -> Protocol:
    """As a protocol that no validator has seen."""
    for dotted, value in changes.items():
        part, name = dotted.split("__")
        protocol = protocol.model_copy(update={part: getattr(protocol, part).model_copy(update={name: value})})
    return protocol


def phases(protocol: Protocol, **changes: Any) -> Protocol:
    found = tuple(phase.model_copy(update=changes) for phase in protocol.training.phases)
    return unchecked(protocol, training__phases=found)


REFUSED: list[tuple[str, str, Callable[[Protocol], Protocol], dict[str, Any]]] = [
    ("no privacy", "private_only", lambda p: unchecked(p, privacy__mode="none"), {}),
    ("an unknown mode", "private_only", lambda p: unchecked(p, privacy__mode="record"), {}),
    ("an unknown mode, to whom privacy is all one", "private_only", lambda p: unchecked(p, privacy__mode="record"),
     {"private_only": False}),
    ("another delta", "delta_limit", lambda p: unchecked(p, privacy__delta=1e-4), {}),
    ("a delta that is no number", "delta_limit", lambda p: unchecked(p, privacy__delta=math.nan), {}),
    ("noise 0", "least_noise", lambda p: unchecked(p, privacy__noise_multiplier=0.0), {}),
    ("noise 0, to whom any noise will do", "least_noise", lambda p: unchecked(p, privacy__noise_multiplier=0.0),
     {"least_noise": 0.0}),
    ("noise below 0", "least_noise", lambda p: unchecked(p, privacy__noise_multiplier=-1.0), {}),
    ("noise that is no number", "least_noise", lambda p: unchecked(p, privacy__noise_multiplier=math.nan), {}),
    ("less than a quarter of the noise", "least_noise", lambda p: unchecked(p, privacy__noise_multiplier=0.1249), {}),
    ("one phase of almost no noise", "least_noise", lambda p: phases(p, noise_factor=0.01), {}),
    ("a clip that is no number", "greatest_clip", lambda p: unchecked(p, privacy__clip=math.nan), {}),
    ("an infinite clip", "greatest_clip", lambda p: unchecked(p, privacy__clip=math.inf), {}),
    ("a clip of 0", "greatest_clip", lambda p: unchecked(p, privacy__clip=0.0), {}),
    ("every patient in every step", "greatest_sample_rate", lambda p: unchecked(p, training__sample_rate=1.0), {}),
    ("a phase that draws more", "greatest_sample_rate", lambda p: phases(p, sample_rate=0.31), {}),
    ("10,000 rounds", "most_rounds", lambda p: phases(p, rounds=5000), {}),
    ("one round too many", "most_rounds", lambda p: p, {"most_rounds": 4}),
    ("too few women", "least_cohort", lambda p: p, {"least_cohort": 41}),
    ("an update in sight of the coordinator", "secure_sum", lambda p: p, {"secure_sum": "required"}),
    ("a sum of a later release", "secure_sum", lambda p: unchecked(p, federation__secure_sum="homomorphic"), {}),
    ("a sum of few", "least_sites", lambda p: unchecked(p, federation__secure_sum="masked", federation__quorum=3),
     {"secure_sum": "required", "least_sites": 5}),
]  # fmt: skip


@pytest.mark.parametrize(("line", "change", "policy"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_refused(
    small_protocol: Make, line: str, change: Callable[[Protocol], Protocol], policy: dict[str, Any]
) -> None:
    decision = decide(STRICT.model_copy(update=policy), change(small_protocol()), 40)
    assert [refusal.line for refusal in decision.refusals] == [line]
    with pytest.raises(PrivacyError, match=f"north refuses the study.*{line}") as caught:
        decision.check("north")
    assert caught.value.exit_code == 40 and caught.value.remedy


CLAMPED: list[tuple[str, str, Callable[[Protocol], Protocol], dict[str, Any], tuple[float, float]]] = [
    ("little noise", "least_noise", lambda p: unchecked(p, privacy__noise_multiplier=0.2), {}, (0.5, 1.0)),
    ("just a quarter", "least_noise", lambda p: unchecked(p, privacy__noise_multiplier=0.125), {}, (0.5, 1.0)),
    ("a quiet phase", "least_noise", lambda p: phases(p, noise_factor=0.3), {}, (0.5, 1.0)),
    ("clip 1e9", "greatest_clip", lambda p: unchecked(p, privacy__clip=1e9), {}, (1.0, 2.0)),
    ("a stricter clip", "greatest_clip", lambda p: p, {"greatest_clip": 0.25}, (1.0, 0.25)),
    ("metrics", "metrics", lambda p: unchecked(p, privacy__metrics="final"), {"metrics": "none"}, (1.0, 1.0)),
]  # fmt: skip


@pytest.mark.parametrize(("line", "change", "policy", "used"), [row[1:] for row in CLAMPED],
                         ids=[row[0] for row in CLAMPED])  # fmt: skip
def test_clamped(
    small_protocol: Make, line: str, change: Callable[[Protocol], Protocol], policy: dict[str, Any],
    used: tuple[float, float],
) -> None:  # fmt: skip
    asked = change(small_protocol())
    decision = decide(STRICT.model_copy(update=policy), asked, 40)
    decision.check("north")
    assert [clamp.line for clamp in decision.clamps] == [line] and not decision.refusals
    does = decision.apply(asked)
    for number in range(1, asked.rounds + 1):
        assert (does.noise_multiplier(number), does.privacy.clip) == used  # to the last bit
        assert (does.sample_rate(number), does.steps(number)) == (asked.sample_rate(number), asked.steps(number))
    assert (line in decision.reason) == (line != "metrics") and decision.metrics is False
    Protocol.create(does.model_dump(mode="json"))  # it is a protocol that a validator takes, too


def test_what_is_within_the_limits_is_done_as_it_is_asked(small_protocol: Make) -> None:
    asked = small_protocol()
    decision = decide(STRICT, asked, 40)
    assert (decision.refusals, decision.clamps, decision.reason) == ((), (), "")
    assert decision.apply(asked) is asked


def test_several_limits_are_told_at_once(small_protocol: Make) -> None:
    asked = unchecked(small_protocol(), privacy__delta=0.1, training__sample_rate=1.0, privacy__clip=1e9)
    decision = decide(STRICT, asked, 1)
    assert [r.line for r in decision.refusals] == ["delta_limit", "greatest_sample_rate", "least_cohort"]
    with pytest.raises(PrivacyError) as caught:
        decision.check("north")
    assert all(line in str(caught.value) for line in ("delta_limit", "greatest_sample_rate", "least_cohort"))


def test_a_protocol_without_noise_cannot_even_be_written(small_protocol: Make) -> None:
    with pytest.raises(ProtocolError, match="noise_multiplier: must be above 0"):
        small_protocol(privacy__noise_multiplier=0.0)


@settings(max_examples=200)
@given(sigma=st.floats(allow_nan=True), clip=st.floats(allow_nan=True), factor=st.floats(1e-3, 1e3),
       least=st.floats(0, 10), most=st.floats(1e-3, 10))  # fmt: skip
def test_whatever_is_asked_is_refused_or_no_less_private_than_the_policy(
    sigma: float, clip: float, factor: float, least: float, most: float
) -> None:
    policy = STRICT.model_copy(update={"least_noise": least, "greatest_clip": most})
    asked = unchecked(phases(PROTOCOL, noise_factor=factor), privacy__noise_multiplier=sigma, privacy__clip=clip)
    decision: Decision = decide(policy, asked, 40)
    if decision.refusals:
        return
    does = decision.apply(asked)
    for number in (1, asked.rounds):
        promised = asked.noise_multiplier(number)
        assert does.noise_multiplier(number) >= max(least, promised) and does.noise_multiplier(number) > 0
        assert 0 < does.privacy.clip <= min(most, clip)
        # What the coordinator's gate believes is what was used: no honest site that clamps is refused for it.
        assert accepted_noise(promised, does.noise_multiplier(number)) == pytest.approx(does.noise_multiplier(number))


# --- the file's fields ---


@pytest.mark.parametrize(("line", "value"), [
    ("private_only", "no"), ("private_only", None), ("epsilon_limit", -1.0), ("epsilon_limit", math.nan),
    ("delta_limit", 0.0), ("delta_limit", 1.0), ("least_noise", -0.1), ("least_noise", None), ("least_noise", math.inf),
    ("greatest_clip", 0.0), ("greatest_clip", None), ("greatest_clip", True), ("greatest_sample_rate", 0.0),
    ("greatest_sample_rate", 1.1), ("most_rounds", 0), ("most_rounds", 1.5), ("least_cohort", 0), ("secure_sum", "no"),
    ("secure_sum", None), ("least_sites", 2), ("suppress_below", -1), ("metrics", "each_round"), ("unknown", 1),
])  # fmt: skip
def test_no_line_takes_what_it_does_not_understand(line: str, value: object) -> None:
    with pytest.raises(ValidationError, match=line):
        PrivacyPolicy.model_validate({line: value})


def test_every_line_says_what_it_means() -> None:
    assert all(PrivacyPolicy.model_fields[line].description for line in LINES)


# --- what the coordinator believes ---


@pytest.mark.parametrize(("told", "believed"), [
    (None, 0.5), (0.5, 0.5), (0.0, 0.5), (-1.0, 0.5), (0.9, 0.9), (2.0, 2.0), (1e300, 2.0), (math.inf, 0.5),
    (math.nan, 0.5),
])  # fmt: skip
def test_a_site_cannot_buy_itself_a_bound(told: float | None, believed: float, small_protocol: Make) -> None:
    assert accepted_noise(0.5, told) == believed and MOST_RAISE == 4.0
    asked = small_protocol(privacy__noise_multiplier=0.5)
    assert raised(asked, 1, told).noise_multiplier(1) == believed
    plain = small_protocol(private=False)
    assert raised(plain, 1, told) is plain

