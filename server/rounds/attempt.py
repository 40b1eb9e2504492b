"""One attempt of a round: ask the sites, judge their replies, journal who took part and why not. Called by the loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from server.aggregation.flower import Answer
from server.aggregation.gate import inspect, norm_bounds
from server.rounds.events import Kind, Severity
from server.rounds.journal import Participation
from server.rounds.phases import Phases, phases_of
from server.rounds.sampling import choose_sites
from server.rounds.states import RoundStep
from server.rounds.study import Study, names_in_words, plain
from server.rounds.sums import MeanUpdate, sum_updates
from shared_model.messages import Arrays, ErrorReply, TrainReply, TrainRequest

AGAIN = ("contributed", "late", "failed")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the coordinator makes of one site's answer."""

    row: Participation
    update: Arrays | None
    reply: TrainReply | None
    answer: Answer | None = None


class Attempt:
    """One attempt from opening to participation.

    Args:
        weights: of the last closed round.
        held: updates contributed to earlier attempts of this round, in this process; completed by :meth:`collect`.

    Attributes:
        mean: the secure sum's, in a study that has one; None before :meth:`collect`, or when too few trained.
    """

    def __init__(
        self, study: Study, round_number: int, attempt: int, *, weights: Arrays, sha256: str, held: dict[str, Arrays]
    ) -> None:
        self._study, self.round, self.attempt = study, round_number, attempt
        self._weights, self._sha256, self._held = weights, sha256, held
        self.mean: MeanUpdate | None = None
        earlier = study.journal.rows(
            "SELECT site, outcome, asked FROM participation WHERE round = ? AND attempt < ? "
            "AND outcome != 'not_sampled' ORDER BY attempt", round_number, attempt,
        )  # fmt: skip
        last = {site: (outcome, asked) for site, outcome, asked in earlier}
        # A site is asked again with the number of its last request: whatever it had made of it is sent again as it is,
        # and costs no privacy twice. Only what came and was no good is asked for anew, under the next number, which
        # trainers accept up to the protocol's `attempts`.
        most = study.protocol.federation.attempts
        self._numbers = {
            site: asked if outcome in AGAIN else min(asked + 1, most) for site, (outcome, asked) in last.items()
        }
        contributed = {site for site, (outcome, _) in last.items() if outcome == "contributed"}
        self.sites = choose_sites(study.protocol, round_number, contributed=contributed, failed=set(last) - contributed)

    def open(self) -> None:
        """Journal that the attempt begins, before anything is sent."""
        with self._study.journal.round_step(self.round, self.attempt, RoundStep.OPEN, weights_before=self._sha256):
            self._note("round_opened", f"{len(self.sites)} sites: {names_in_words(self.sites)}")

    def collect(self) -> int:
        """Send, wait, judge, journal. Returns how many sites contributed."""
        study = self._study
        asked = [site for site in self.sites if site not in self._held]
        reachable = [site for site in asked if site in study.roster.sites]
        with study.journal.entry():
            for site in reachable:
                self._note("site_started", site=site)
        ignored = study.exchange.ignored
        answers = self._ask(reachable)
        bounds = norm_bounds(study.protocol, self.round, self._weights, corrections=self._corrections(reachable),
                             noise=_told(answers))  # fmt: skip
        verdicts = [self._judge(site, answers.get(site), norm_bound=bounds[site]) for site in asked]
        if study.protocol.summed:
            verdicts = self._sum(verdicts, _told(answers))
        with study.journal.round_step(self.round, self.attempt, RoundStep.COLLECT):
            for verdict in verdicts:
                self._record(verdict)
            self._record_others(set(asked))
            if study.exchange.ignored > ignored:
                count = study.exchange.ignored - ignored
                self._note("alarm", f"{count} replies to nothing that was asked, ignored", severity="warning",
                           code="foreign_reply")  # fmt: skip
            self._tell_sum()
        if study.protocol.summed:
            return len(self.mean.sites) if self.mean is not None and self.mean.weights is not None else 0
        self._held.update({v.row.site: v.update for v in verdicts if v.update is not None})
        return len(self._held)

    def _tell_sum(self) -> None:
        """Journal what became of the secure sum, in the step that names who was in it."""
        mean = self.mean
        if mean is None:
            return
        if mean.weights is None:
            self._note("alarm", plain(mean.fault), severity="warning", code="secure_sum")
            return
        self._study.note(
            "updates_summed", f"the sum of {names_in_words(mean.sites)} was opened; no single update was seen",
            round_number=self.round, attempt=self.attempt, data={"sites": len(mean.sites), "error": mean.error},
        )  # fmt: skip

    def _sum(self, verdicts: list[Verdict], told: Mapping[str, float]) -> list[Verdict]:
        """Sum the updates of those who trained, and judge each site by whether it is in the sum."""
        self.mean = sum_updates(
            self._study, self.round, self.attempt, base=self._weights, told=told,
            trained=[v.row.site for v in verdicts if v.row.outcome == "contributed"],
            asked={site.name: self._number(site.name) for site in self._study.protocol.federation.sites},
        )  # fmt: skip
        return [_after_sum(verdict, self.mean) for verdict in verdicts]

    def _ask(self, sites: list[str]) -> dict[str, Answer]:
        study, messages = self._study, []
        groups = {site: self._number(site) for site in sites}
        for number in sorted(set(groups.values())):
            request = TrainRequest(
                study=study.study_id, protocol_sha256=study.protocol.sha256, round=self.round, attempt=number,
                weights_sha256=self._sha256,
            )  # fmt: skip
            nodes = {site: study.roster.sites[site] for site in sites if groups[site] == number}
            messages += study.aggregator.compose(self._weights, request, nodes)
        answers = study.exchange.deliver(messages, timeout_s=study.protocol.federation.deadline_s)
        return {site: answers[study.roster.sites[site]] for site in sites}

    def _corrections(self, sites: list[str]) -> dict[str, float]:
        """Norm of what each site was sent beside the weights, where the strategy sends anything."""
        sent = {site: self._study.aggregator.correction(site) for site in sites}
        return {site: correction.norm for site, correction in sent.items() if correction is not None}

    def _judge(self, site: str, answer: Answer | None, *, norm_bound: float) -> Verdict:
        asked = self._number(site)
        if answer is None:
            return _verdict(site, asked, None, "failed", "absent: no node stands for this site")
        reply = answer.frame.message if answer.frame else None
        if answer.frame is None:
            outcome = {"late": "late", "malformed": "refused"}.get(answer.failure, "failed")
            return _verdict(site, asked, answer, outcome, f"{answer.failure}: {answer.detail}")
        if isinstance(reply, ErrorReply):
            return _verdict(site, asked, answer, "failed", f"code {reply.code}: {reply.reason}")
        fault = self._identity_fault(site, asked, reply)
        if fault or not isinstance(reply, TrainReply):
            return _verdict(site, asked, answer, "refused", fault)
        if reply.outcome == "abstained":
            return _verdict(site, asked, answer, "abstained", reply.reason, reply)
        if self._study.protocol.private and reply.privacy is None:
            return _verdict(site, asked, answer, "refused", "privacy: the update came without its accounting", reply)
        if self._study.protocol.summed:
            if answer.frame.arrays:
                return _verdict(site, asked, answer, "refused", "secure sum: the update came in clear", reply)
            return _verdict(site, asked, answer, "contributed", "", reply)
        rejection = inspect(answer.frame.arrays, self._weights, norm_bound=norm_bound)
        if rejection is not None:
            return _verdict(site, asked, answer, "refused", f"{rejection.code}: {rejection.text}", reply)
        return _verdict(site, asked, answer, "contributed", reply.reason, reply, answer.frame.arrays)

    def _identity_fault(self, site: str, asked: int, reply: object) -> str:
        if not isinstance(reply, TrainReply):
            return "identity: the reply is no training result"
        sent = self._study.aggregator.correction(site)
        correction = sent.sha256 if sent is not None else None
        expected = (site, self._study.study_id, self.round, asked, self._sha256, correction)
        found = (
            reply.site, reply.study, reply.round, reply.attempt, reply.weights_sha256, reply.correction_sha256,
        )  # fmt: skip
        names = ("site", "study", "round", "attempt", "weights", "correction")
        wrong = [name for name, a, b in zip(names, found, expected, strict=True) if a != b]
        return f"identity: the reply is for another {', '.join(wrong)}" if wrong else ""

    def _record(self, verdict: Verdict) -> None:
        study, reply = self._study, verdict.reply
        row = replace(verdict.row, phases=self._phases(verdict))
        study.journal.participation(self.round, self.attempt, row)
        data: dict[str, float | str] = {"outcome": row.outcome, "bytes_up": row.bytes_up, "bytes_down": row.bytes_down}
        if row.seconds is not None:
            data["seconds"] = row.seconds
        if row.phases is not None:
            data |= {f"{name}_s": value for name, value in asdict(row.phases).items() if value is not None}
        if reply is not None and reply.loss is not None and not study.protocol.private:
            # Under privacy a loss is not noised: whatever a site says, it is neither kept nor shown.
            data["loss"] = reply.loss
            study.journal.metrics(self.round, "training", row.site, {"loss": reply.loss})
        if reply is not None and reply.privacy is not None:
            data |= {"epsilon": reply.privacy.epsilon, "budget": reply.privacy.budget}
            study.journal.privacy(self.round, row.site, "training", reply.privacy)
        study.note(
            "site_replied", row.reason, severity="info" if row.outcome == "contributed" else "warning",
            code="" if row.outcome == "contributed" else row.outcome, round_number=self.round, attempt=self.attempt,
            site=row.site, data=data,
        )  # fmt: skip

    def _phases(self, verdict: Verdict) -> Phases | None:
        """Where the site's time went; None where nothing came."""
        answer, mean = verdict.answer, self.mean
        if answer is None or answer.seconds is None:
            return None
        summed = mean.seconds.get(verdict.row.site, (0.0, 0.0)) if mean is not None else (0.0, 0.0)
        return phases_of(verdict.reply.phases if verdict.reply else None, trip=answer.seconds, waited=answer.waited,
                         summed=summed, coarse=self._study.protocol.coarse_times)  # fmt: skip

    def _record_others(self, asked: set[str]) -> None:
        """Sites that were not asked in this attempt: held from an earlier one, or not drawn."""
        for terms in self._study.protocol.federation.sites:
            if terms.name in asked:
                continue
            outcome, reason, number = "not_sampled", "", 0
            if terms.name in self.sites:
                number = self._number(terms.name)
                outcome, reason = "contributed", "update of an earlier attempt"
            row = Participation(site=terms.name, outcome=outcome, reason=reason, asked=number, seconds=None, bytes_up=0,
                                bytes_down=0)  # fmt: skip
            self._study.journal.participation(self.round, self.attempt, row)

    def _number(self, site: str) -> int:
        return int(self._numbers.get(site, 1))

    @property
    def base(self) -> Arrays:
        """The weights that the sites were sent."""
        return self._weights

    def updates(self) -> Mapping[str, Arrays]:
        """The updates that passed, by site."""
        return {site: self._held[site] for site in self.sites if site in self._held}

    def _note(
        self, kind: Kind, text: str = "", *, severity: Severity = "info", code: str = "", site: str | None = None
    ) -> None:
        self._study.note(
            kind, text, severity=severity, code=code, round_number=self.round, attempt=self.attempt, site=site
        )


def _after_sum(verdict: Verdict, mean: MeanUpdate | None) -> Verdict:
    """The verdict on a site once the sum is made: in it, or why not.

    Who was in a sum that was opened and gave nothing for good is asked to train anew, under the next number: its
    trainer brings the same values to no second sum. Everybody else keeps them.
    """
    row = verdict.row
    if mean is None:
        if row.outcome != "contributed":
            return verdict
        return replace(verdict, row=replace(row, outcome="failed", reason="secure sum: too few sites trained for one"))
    up, down = mean.traffic.get(row.site, (0, 0))
    row = replace(row, bytes_up=row.bytes_up + up, bytes_down=row.bytes_down + down)
    if mean.weights is not None and row.site in mean.sites:
        words = row.reason if row.outcome == "contributed" else ""  # what the site's own policy changed
        return replace(verdict, row=replace(row, outcome="contributed", reason=words))
    if row.outcome != "contributed":
        return replace(verdict, row=row)
    outcome = "refused" if mean.spent else "failed"
    words = mean.lost.get(row.site, "") or mean.fault or "it was not in the sum that was begun"
    return replace(verdict, row=replace(row, outcome=outcome, reason=plain(f"secure sum: {words}")))


def _told(answers: Mapping[str, Answer]) -> dict[str, float]:
    """The noise multiplier that each site says it used: its own policy may ask for more than the protocol does."""
    messages = {site: answer.frame.message for site, answer in answers.items() if answer.frame is not None}
    return {site: message.privacy.noise_multiplier for site, message in messages.items()
            if isinstance(message, TrainReply) and message.privacy is not None}  # fmt: skip


def _verdict(
    site: str, asked: int, answer: Answer | None, outcome: str, reason: str, reply: TrainReply | None = None,
    update: Arrays | None = None,
) -> Verdict:  # fmt: skip
    row = Participation(
        site=site, outcome=outcome, reason=plain(reason), asked=asked, seconds=reply.seconds if reply else None,
        bytes_up=answer.bytes_up if answer else 0, bytes_down=answer.bytes_down if answer else 0,
    )  # fmt: skip
    return Verdict(row=row, update=update, reply=reply, answer=answer)
