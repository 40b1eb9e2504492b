"""What crosses between coordinator and site: declared fields and named tensors, bounded and checked before allocation.

Used by the courier's shim, the trainer and the server; needs neither torch nor Flower. On the wire a message is one
safetensors file whose metadata holds kind and fields as JSON, so that both ends decode into declared types only. Where
a coordinator signs, the metadata holds its envelope (`shared_model.signed_request`) as well, which is opaque here.
"""

from shared_model.messages.frame import (
    CHUNK_BYTES,
    MAX_ENVELOPE_BYTES,
    MAX_FRAME_BYTES,
    MAX_HEADER_BYTES,
    Frame,
    decode,
    encode,
    parse_fields,
    parse_message,
)  # fmt: skip
from shared_model.messages.kinds import (
    MAX_DOCUMENT_CHARS,
    MAX_REPORT_BYTES,
    MAX_STATEMENT_CHARS,
    AuditReply,
    AuditRequest,
    DescribeReply,
    DescribeRequest,
    ErrorReply,
    EvaluateReply,
    EvaluateRequest,
    Fields,
    Message,
    PrivacySpent,
    Request,
    SecureSumReply,
    SecureSumRequest,
    SiteName,
    SumStep,
    TrainReply,
    TrainRequest,
)  # fmt: skip
from shared_model.messages.weights import (
    check_shapes,
    split_correction,
    weights_sha256,
)  # fmt: skip
from shared_model.tensors import CORRECTION, MASKED, Arrays

__all__ = [
    "CHUNK_BYTES", "CORRECTION", "MASKED", "MAX_DOCUMENT_CHARS", "MAX_ENVELOPE_BYTES", "MAX_FRAME_BYTES",
    "MAX_HEADER_BYTES", "MAX_REPORT_BYTES", "MAX_STATEMENT_CHARS", "Arrays", "AuditReply", "AuditRequest",
    "DescribeReply", "DescribeRequest", "ErrorReply", "EvaluateReply", "EvaluateRequest", "Fields", "Frame", "Message",
    "PrivacySpent", "Request", "SecureSumReply", "SecureSumRequest", "SiteName", "SumStep", "TrainReply",
    "TrainRequest", "check_shapes", "decode", "encode", "parse_fields", "parse_message", "split_correction",
    "weights_sha256",
]  # fmt: skip
