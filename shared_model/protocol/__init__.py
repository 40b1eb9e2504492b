"""The study protocol: the frozen, declarative description of one federated training, hashed and checked field by field.

Written once by the coordinator, approved by each site, read by the server loop and by every trainer. It holds no code,
no path and no address: only numbers, names from closed lists, and hashes. What was approved is what runs, because every
request names the protocol's hash and a trainer serves only the protocols on its own disk.
"""

from shared_model.protocol.evaluation import EvaluationTerms, ReplacementTerms
from shared_model.protocol.federation import SiteTerms
from shared_model.protocol.kept import MAX_PROTOCOL_BYTES
from shared_model.protocol.material import BUILT_IN, PipelineTerms
from shared_model.protocol.study import Protocol
from shared_model.protocol.terms import Fraction, Name, Sha256, Terms
from shared_model.protocol.training import AugmentationTerms, LossTerms, PhaseTerms

__all__ = [
    "BUILT_IN", "MAX_PROTOCOL_BYTES", "AugmentationTerms", "EvaluationTerms", "Fraction", "LossTerms", "Name",
    "PhaseTerms", "PipelineTerms", "Protocol", "ReplacementTerms", "Sha256", "SiteTerms", "Terms",
]  # fmt: skip
