"""One site's side of the typed interface: bytes of a request in, bytes of the reply out; hosted by the server."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from client.privacy.egress import EgressGate, Released
from client.privacy.egress_rules import Asked, Party
from client.privacy.scrub import without_identity as without_identity
from client.trainer.config import SiteConfig
from client.trainer.evaluate import answer_evaluate
from client.trainer.models import WarmModels
from client.trainer.secure import answer_secure_sum
from client.trainer.site import Site, release
from client.trainer.stopwatch import Stopwatch
from client.trainer.train import answer_train
from client.training.features import FeatureCache
from shared_model.errors import ConfigError, MammoFedError, MessageError, TrainerError
from shared_model.messages import (
    AuditReply,
    AuditRequest,
    DescribeReply,
    DescribeRequest,
    EvaluateRequest,
    Frame,
    SecureSumRequest,
    TrainRequest,
    decode,
    encode,
    parse_fields,
)

log = logging.getLogger("mammofed.trainer")


class TrainerService:
    """Answers `describe`, `train`, `evaluate` and `audit` for one site.

    With a coordinator, training and evaluation need its signature over exactly this request (`client.trainer.record`).

    Args:
        config: the site's own settings.
        compute: held during training and evaluation; share one among all services of a process.
        features: see :class:`client.trainer.site.Site`.
        models: built models; share them among services that share `compute`, and only those. None: its own.

    Raises:
        MammoFedError: the site cannot be opened (see :class:`client.trainer.site.Site`).
    """

    def __init__(
        self, config: SiteConfig, *, compute: threading.Lock, models: WarmModels | None = None,
        features: FeatureCache | None = None,
    ) -> None:  # fmt: skip
        warm = WarmModels() if models is None else models
        self._site, self._compute = Site(config, warm, features=features), compute
        try:
            self._gate = _gate(config)
        except BaseException:  # who cannot be opened keeps nobody else out
            self._site.close()
            raise

    @property
    def site(self) -> Site:
        """The hosted site; for code on its own side of the border only."""
        return self._site

    @property
    def device(self) -> str:
        """Where this site computes."""
        return str(self._site.device)

    def warm(self) -> None:
        """Do before the first round what would otherwise be done in it: imports, models, the accountant's first sum."""
        with self._compute:
            for protocol in self._site.approved().values():
                try:
                    self._site.warm(protocol)
                except MammoFedError as error:  # said again, to the coordinator, when somebody asks for this protocol
                    log.warning("%s: %s", self._site.config.site, error)

    def open(self) -> None:
        """Take the site's state again after :meth:`close`; where processes take turns on a site.

        Raises:
            MammoFedError: somebody else has it.
        """
        self._site.open()

    def close(self) -> None:
        """Let go of the site's state."""
        self._gate.close()
        self._site.close()

    def exchange(self, data: bytes, *, wanted: Callable[[], bool]) -> Released:
        """Answer one encoded frame. Every failure becomes an `ErrorReply` in words, without paths or pseudonyms.

        Whatever is returned went through the egress gate, which alone can make it.

        Args:
            wanted: whether the asker still waits; asked again when the turn comes, before anything is spent.
        """
        watch = Stopwatch()
        try:
            match parse_fields(data):
                case DescribeRequest() as request:
                    return self._gate.release(encode(Frame(self._describe())), Asked(request=request))
                case AuditRequest() as request:
                    return self._gate.release(encode(Frame(self._audit(request))), Asked(request=request))
            with self._compute:
                if not wanted():
                    raise TrainerError("the request was given up before its turn came; nothing was done")
                watch.lap("wait")
                return self._checked(decode(data), watch)
        except MammoFedError as error:
            log.warning("%s: refused or failed: %s", self._site.config.site, error)
            return self._refusal(error)
        except Exception as error:  # the asker gets an answer whatever happens; the cause stays in the site's own log
            log.exception("%s: internal failure", self._site.config.site)
            words = f"internal failure ({type(error).__name__}); the site's own log has the details"
            return self._refusal(TrainerError(words))

    def _refusal(self, error: MammoFedError) -> Released:
        if self._site.record is not None:
            self._site.record.refused(error, words=self._gate.words_of(error))
        return self._gate.refusal(error)

    def _checked(self, frame: Frame, watch: Stopwatch) -> Released:
        record = self._site.record
        if record is None:
            if frame.envelope is not None:
                raise ConfigError("the request is signed, and this trainer knows no coordinator to check that with",
                                  remedy="name the coordinator in the trainer's configuration")  # fmt: skip
            return self._released(self._answer(frame, watch), frame)
        signed = record.admit(frame)
        asked = frame.message if isinstance(frame.message, SecureSumRequest) else signed.request
        frame = Frame(asked, frame.arrays)  # what was signed, not what came beside it
        reply = self._answer(frame, watch)
        record.answered(signed, reply)
        return self._released(reply, frame)

    def _released(self, reply: bytes, frame: Frame) -> Released:
        """The stored or new answer to a study's request, through the gate. What it refuses stays stored, and so is
        neither computed nor charged again."""
        request = frame.message
        assert isinstance(request, TrainRequest | EvaluateRequest | SecureSumRequest)
        protocol = self._site.protocol(request.protocol_sha256, study=request.study)
        trained = self._site.trained(protocol, request.round) if isinstance(request, TrainRequest) else frozenset()
        return self._gate.release(
            reply, Asked(request=request, protocol=protocol, weights=frame.arrays, trained=trained)
        )

    def _answer(self, frame: Frame, watch: Stopwatch) -> bytes:
        match frame.message:
            case TrainRequest() as request:
                return answer_train(self._site, request, frame.arrays, watch)
            case EvaluateRequest() as request:
                return answer_evaluate(self._site, request, frame.arrays)
            case SecureSumRequest() as request:
                return answer_secure_sum(self._site, request)
            case other:
                raise MessageError("a trainer answers requests only", found=other.kind)

    def _audit(self, request: AuditRequest) -> AuditReply:
        if self._site.record is None:
            raise ConfigError("this trainer knows no coordinator, so it keeps no audit log",
                              remedy="name the coordinator in the trainer's configuration")  # fmt: skip
        return self._site.record.exchange(request)

    def _describe(self) -> DescribeReply:
        config, record = self._site.config, self._site.record
        return DescribeReply(site=config.site, role=config.role, release=release(),
                             key=record.key.public.hex if record is not None else None,
                             protocols=tuple(self._site.approved()), device=str(self._site.device))  # fmt: skip


def _gate(config: SiteConfig) -> EgressGate:
    party = Party(site=config.site, role=config.role, suppress_below=config.suppress_below)
    return EgressGate(config.state, party=party, paths=(config.cohort, config.state, config.protocols),
                      recipient=config.coordinator.name if config.coordinator is not None else None)  # fmt: skip
