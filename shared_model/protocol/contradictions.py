"""Parts of a protocol that do not go together; each alone is valid."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shared_model.strategies import personal_fault, robustness_fault, scaffold_fault, secure_sum_fault

if TYPE_CHECKING:
    from shared_model.protocol.study import Protocol


def contradiction(protocol: Protocol) -> str:
    """The first fault that is found, beginning with the field's name; empty when all goes together."""
    for look in (_replacement_fault, _sites_fault, _strategy_fault, _exploration_fault, _engine_fault):
        if fault := look(protocol):
            return fault
    return ""


def _replacement_fault(protocol: Protocol) -> str:
    replacement = protocol.replacement
    if replacement is None:
        return ""
    if protocol.initial_weights.origin != "study":
        return "replacement: of a study that begins from another's model, initial_weights.origin=study"
    if replacement.model_sha256 != protocol.initial_weights.sha256:
        return "replacement.model_sha256: not the hash of the initial weights"
    if protocol.private and replacement.epsilon_before >= protocol.privacy.epsilon:
        return "replacement.epsilon_before: nothing of privacy.epsilon is left for this study"
    return ""


def _sites_fault(protocol: Protocol) -> str:
    terms = protocol.federation
    names = [site.name for site in terms.sites]
    if len(set(names)) != len(names):
        return f"federation.sites: names must be unique, found {names}"
    if not terms.quorum <= terms.sites_per_round <= len(names):
        return (f"federation: need quorum <= sites_per_round <= sites, found {terms.quorum}, "
                f"{terms.sites_per_round}, {len(names)}")  # fmt: skip
    return ""


def _strategy_fault(protocol: Protocol) -> str:
    """Why the strategy, or what stays at the sites, does not go with the rest."""
    terms, training = protocol.federation, protocol.training
    fault = robustness_fault(
        terms.strategy, byzantine=terms.byzantine, krum_select=terms.krum_select, quorum=terms.quorum
    )
    if fault:
        return f"federation.{fault}"
    if terms.strategy == "scaffold" and (
        fault := scaffold_fault(
            optimizer=training.optimizer, momentum=training.momentum, ema_decay=training.ema_decay,
            proximal_mu=training.proximal_mu, personal=terms.personal,
        )
    ):  # fmt: skip
        return fault
    if protocol.summed and (
        fault := secure_sum_fault(
            terms.strategy, weights=[site.weight for site in terms.sites], sites_per_round=terms.sites_per_round,
            quorum=terms.quorum,
        )
    ):  # fmt: skip
        return f"federation.{fault}"
    if protocol.privacy.metrics == "joint" and not protocol.summed and not protocol.private:
        return ("privacy.metrics: `joint` sums the sites' histograms securely, or noised: it needs "
                "federation.secure_sum=masked or privacy.mode=patient")  # fmt: skip
    return personal_fault(personal=terms.personal, weight_decay=training.weight_decay)


def _exploration_fault(protocol: Protocol) -> str:
    """Why an exploration is none."""
    if protocol.exploration is None:
        return ""
    if not protocol.summed:
        return "exploration: counts leave in a secure sum only; it needs federation.secure_sum=masked"
    if (protocol.rounds, protocol.steps(1), protocol.sample_rate(1)) != (1, 1, 1.0):
        return "exploration: every woman is counted once: one round of one step at a sample rate of 1"
    if protocol.privacy.metrics != "none":
        return "exploration: privacy.metrics: there is no model to measure, expected none"
    return ""


def _engine_fault(protocol: Protocol) -> str:
    training = protocol.training
    if not protocol.private:
        return "" if training.engine == "batch" else "training.engine: without privacy the engine is `batch`"
    if protocol.privacy.noise_multiplier <= 0:
        return "privacy.noise_multiplier: must be above 0 with privacy.mode=patient"
    if training.engine == "batch":
        return "training.engine: `batch` mixes patients before clipping; use `loop` or `opacus`"
    if training.oversampling != "none":
        return (
            f"training.oversampling: `{training.oversampling}` is refused with privacy.mode=patient: a "
            "repeated or interpolated patient is clipped several times, so one patient moves the sum by more "
            "than C and the printed epsilon would be false; use `none`"
        )
    return ""
