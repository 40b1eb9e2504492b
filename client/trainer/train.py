"""Answers a training request for one site: check, reserve privacy, train, settle, keep the reply (for the service)."""

from __future__ import annotations

import time

from client.privacy.egress_rules import check_update
from client.privacy.ledger import LedgerEntry, privacy_spent
from client.privacy.randomness import Randomness
from client.privacy.what_if import limit_of
from client.trainer.correction import checked_correction
from client.trainer.explore import refuse_exploration
from client.trainer.personal import PersonalCopies, generic
from client.trainer.replies import round_slot
from client.trainer.secure import check_can_sum, sum_files, vector_of
from client.trainer.site import Site, study_folder
from client.trainer.stopwatch import Stopwatch
from client.training.checks import check_training
from client.training.local import RoundResult, randomness_for, train_round
from shared_model.errors import BudgetExhaustedError, ProtocolError
from shared_model.fusion import FusionModel, arrays_of
from shared_model.messages import Arrays, Frame, PrivacySpent, TrainReply, TrainRequest, encode, split_correction
from shared_model.phases import told
from shared_model.protocol import Protocol
from shared_model.secagg.terms import UPDATE

HEADER_ROOM = 65536  # bytes of a reply beside its tensors, and room for the ledger's own entry


def answer_train(site: Site, request: TrainRequest, arrays: Arrays, watch: Stopwatch | None = None) -> bytes:
    """One round at one site; the reply is on the disk before it is returned, and a repetition returns those bytes.

    A crash between the reservation and the stored reply makes the repetition reserve and train again: the ledger then
    counts a round that nobody saw, and never misses one that somebody did.

    Args:
        watch: runs since the request came; None: since now.

    Raises:
        ProtocolError, CohortError, WeightsError, MessageError: the request does not fit this site; nothing was spent.
        PrivacyError: the round was already answered for other weights.
        StorageError: the ledger or the reply could not be written; nothing is sent.
    """
    watch = watch or Stopwatch()
    protocol = _checked(site, request)
    used = site.decision(protocol).apply(protocol)  # with more noise or a lower clip, where the site's policy says so
    weights, beside = split_correction(arrays)
    model = site.model(protocol, weights, request.weights_sha256)
    correction = checked_correction(protocol, request, weights, beside)
    folder, slot, identity = study_folder(protocol), round_slot(request.round, request.attempt), request.identity
    stored = site.replies.find(folder, slot, identity)
    if stored is not None:
        return stored
    watch.lap("load")
    started = time.monotonic()
    randomness = randomness_for(protocol, site=site.config.site, round_number=request.round)
    check_training(used, model, randomness)  # before anything is charged
    own = PersonalCopies(site.config.state / "personal" / folder, protocol, model)
    start = own.put_on(model, up_to=request.round - 1)
    size = sum(array.nbytes for array in weights.values()) + HEADER_ROOM
    site.replies.make_room(folder, slot, identity, size)  # or a full disk spends epsilon for nothing
    own.make_room(request.round)
    if protocol.summed:
        sum_files(site, protocol).make_room(UPDATE, request.round, request.attempt, size=size)
    try:
        reservation = _reserve(site, protocol, used, request)
    except BudgetExhaustedError as error:
        watch.lap("train")
        data = encode(Frame(_reply(site, protocol, used, request, watch, started, None, abstained=str(error))))
    else:
        result = _train(site, used, request, model, randomness, correction)
        if reservation is not None:
            site.ledger.settle(reservation)
        trained = arrays_of(model)
        own.keep(request.round, trained)
        watch.lap("train")
        watch.move(result.load_s, "train", "load")
        update = generic(weights, start, trained)
        if protocol.summed:  # it stays here until it is masked, and no gate can look into it then
            check_update(protocol, request.round, site=site.config.site, update=update, base=weights, correction={},
                         trained=site.trained(protocol, request.round), told=used.noise_multiplier(request.round))
            vector = vector_of(update, weights)
            sum_files(site, protocol).keep(UPDATE, request.round, request.attempt, vector)
            watch.lap("mask")
        reply = _reply(site, protocol, used, request, watch, started, result)
        data = encode(Frame(reply, {} if protocol.summed else update))
    site.replies.store(folder, slot, identity, data)
    return data


def budget(site: Site, protocol: Protocol) -> float:
    """Greatest epsilon that a patient of the site may reach: the protocol's, or less where the site says so."""
    return limit_of(site.config.epsilon_limit, protocol)


def spent(site: Site, used: Protocol, round_number: int) -> PrivacySpent:
    """State of the training patients' account under the site's own budget.

    Args:
        used: the protocol as the site carries it out (`Decision.apply`): the coordinator's gate allows for its noise.
    """
    told = privacy_spent(site.ledger, used, pseudonyms=site.pseudonyms("train"))
    return told.model_copy(update={
        "budget": budget(site, used), "noise_multiplier": used.noise_multiplier(round_number),
        "sample_rate": used.sample_rate(round_number),
    })  # fmt: skip


def _checked(site: Site, request: TrainRequest) -> Protocol:
    if site.config.role != "site":
        raise ProtocolError("the evaluator never trains", found="a training request", expected="an evaluation")
    protocol = site.protocol(request.protocol_sha256, study=request.study)
    if request.round > protocol.rounds or request.attempt > protocol.federation.attempts:
        raise ProtocolError("round or attempt outside the protocol",
                            found=f"{request.round}, attempt {request.attempt}",
                            expected=f"1..{protocol.rounds}, attempt 1..{protocol.federation.attempts}")  # fmt: skip
    refuse_exploration(protocol)
    site.indices("train")
    site.fields(protocol)
    if protocol.summed:
        check_can_sum(site, protocol)
    return protocol


def _reserve(site: Site, protocol: Protocol, used: Protocol, request: TrainRequest) -> int | None:
    """Charge the round to the ledger as it is carried out; None without privacy."""
    if not protocol.private:
        return None
    entry = LedgerEntry(
        group="train", study=protocol.study, protocol_sha256=protocol.sha256, round=request.round,
        attempt=request.attempt, noise_multiplier=used.noise_multiplier(request.round),
        sample_rate=used.sample_rate(request.round), steps=used.steps(request.round),
    )  # fmt: skip
    return site.ledger.reserve(entry, budget=budget(site, protocol), delta=protocol.privacy.delta,
                               pseudonyms=site.pseudonyms("train"))  # fmt: skip


def _train(
    site: Site, protocol: Protocol, request: TrainRequest, model: FusionModel, randomness: Randomness,
    correction: Arrays | None,
) -> RoundResult:  # fmt: skip
    return train_round(
        model=model, cohort=site.cohort, indices=site.indices("train"), protocol=protocol, site=site.config.site,
        round_number=request.round, device=site.device, randomness=randomness, fields=site.fields(protocol),
        features=site.features,
        correction=correction,
    )  # fmt: skip


def _reply(
    site: Site, protocol: Protocol, used: Protocol, request: TrainRequest, watch: Stopwatch, started: float,
    result: RoundResult | None, *, abstained: str = "",
) -> TrainReply:  # fmt: skip
    coarse = protocol.coarse_times
    return TrainReply(
        site=site.config.site, study=protocol.study, round=request.round, attempt=request.attempt,
        weights_sha256=request.weights_sha256, correction_sha256=request.correction_sha256,
        outcome="abstained" if result is None else "trained",
        reason=abstained[:300] or site.decision(protocol).reason,
        seconds=told(time.monotonic() - started, coarse=coarse), phases=watch.told(coarse=coarse),
        # Not noised, and not summed: so it stays here.
        loss=None if result is None or protocol.private or protocol.summed else result.loss,
        privacy=spent(site, used, request.round) if protocol.private else None,
    )  # fmt: skip
