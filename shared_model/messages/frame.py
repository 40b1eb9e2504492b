"""A message as bytes: one safetensors file, read without trust."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from pydantic import ValidationError
from safetensors.numpy import save as save_safetensors

from shared_model.errors import MessageError
from shared_model.messages.kinds import KINDS, MAX_REPORT_BYTES, Message
from shared_model.tensors import MAX_TENSOR_BYTES, Arrays, load, typed

MAX_HEADER_BYTES = 1 << 20
MAX_FRAME_BYTES = MAX_TENSOR_BYTES
MAX_ENVELOPE_BYTES = 16 << 10
CHUNK_BYTES = 1 << 20  # of a message that is streamed

_FIELDS, _ENVELOPE = "message", "envelope"  # in the metadata of the safetensors file


@dataclass(frozen=True)
class Frame:
    """One message: its fields and, where the kind has them, named float32 tensors.

    envelope: the coordinator's signature over a request (`SignedRequest.to_json`), ASCII; None: unsigned.
    """

    message: Message
    arrays: Arrays = field(default_factory=dict)
    envelope: bytes | None = None


def encode(frame: Frame) -> bytes:
    """Frame -> bytes.

    Raises:
        MessageError: above `MAX_FRAME_BYTES`, or the envelope is no ASCII text of at most `MAX_ENVELOPE_BYTES`.
    """
    tensors = {name: typed(name, array) for name, array in frame.arrays.items()}
    metadata = {_FIELDS: frame.message.model_dump_json()}
    if frame.envelope is not None:
        if len(frame.envelope) > MAX_ENVELOPE_BYTES or not frame.envelope.isascii():
            raise MessageError("the request's envelope is too large or no text", found=f"{len(frame.envelope)} bytes",
                               expected=f"at most {MAX_ENVELOPE_BYTES}, ASCII")  # fmt: skip
        metadata[_ENVELOPE] = frame.envelope.decode("ascii")
    data = save_safetensors(tensors, metadata=metadata)
    if len(data) > MAX_FRAME_BYTES:
        raise MessageError("message is too large", found=f"{len(data)} bytes", expected=f"at most {MAX_FRAME_BYTES}",
                           remedy="choose a smaller model size")  # fmt: skip
    return data


def decode(data: bytes) -> Frame:
    """Bytes that are not trusted -> Frame. Only float32 tensors; unknown kinds and fields are refused.

    Raises:
        MessageError: in words, never with the content.
    """
    metadata = _metadata(data)
    message, envelope = parse_message(metadata[_FIELDS]), metadata.get(_ENVELOPE)
    arrays = load(data)
    return Frame(message, arrays, None if envelope is None else envelope.encode("ascii"))


def parse_fields(data: bytes) -> Message:
    """The fields of an encoded frame alone, without touching its tensors (what the courier needs for its log)."""
    return parse_message(_metadata(data)[_FIELDS])


def _metadata(data: bytes) -> dict[str, str]:
    """The texts in the header of an encoded frame: the message's fields, and its envelope where there is one."""
    if len(data) > MAX_FRAME_BYTES:
        raise MessageError("message is too large", found=len(data), expected=f"at most {MAX_FRAME_BYTES} bytes")
    length = int.from_bytes(data[:8], "little") if len(data) >= 8 else -1
    if not 2 <= length <= MAX_HEADER_BYTES + MAX_REPORT_BYTES or 8 + length > len(data):
        raise MessageError("message is damaged: bad header length", found=length)
    try:
        metadata = json.loads(data[8 : 8 + length])["__metadata__"]
    except (ValueError, KeyError, TypeError, RecursionError):
        metadata = None
    if not isinstance(metadata, dict) or set(metadata) not in ({_FIELDS}, {_FIELDS, _ENVELOPE}) or not all(
        isinstance(text, str) for text in metadata.values()
    ):  # fmt: skip
        raise MessageError("message is damaged: header is not what a MammoFed message has")
    envelope = metadata.get(_ENVELOPE, "")
    if len(envelope) > MAX_ENVELOPE_BYTES or not envelope.isascii():
        raise MessageError("the request's envelope is too large or no text", found=f"{len(envelope)} characters",
                           expected=f"at most {MAX_ENVELOPE_BYTES}, ASCII")  # fmt: skip
    return metadata


def parse_message(text: str) -> Message:
    """JSON text of a message's fields -> typed message.

    Raises:
        MessageError: unknown kind, or a field is missing, unknown or out of bounds.
    """
    try:
        values = json.loads(text)
        kind = values["kind"]
        declared = KINDS[kind]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise MessageError("message of an unknown kind", expected=sorted(KINDS)) from None
    try:
        return declared.model_validate(values)  # type: ignore[return-value]
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_url=False)[:5])
        raise MessageError(f"message of kind {kind!r} breaks its schema: {faults}") from None
