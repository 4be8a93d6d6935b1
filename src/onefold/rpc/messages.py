"""Messages as they come and go: bytes that are none, requests and answers that are too large."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from google.protobuf.message import DecodeError

from onefold.errors import Kind, OnefoldError, Reason, exhausted
from onefold.limits import MESSAGE_BYTES


class _Undecodable:
    """Stands in for a request whose bytes are not a message of the method."""


class _TooLarge:
    """Stands in for a request of more bytes than a message may have."""


# What a caller has sent who ended the call without a message.
MISSING: Final = _Undecodable()


def tolerant(deserialize: Callable[[bytes], Any] | None) -> Callable[[bytes], Any]:
    """A deserialiser under which bytes that are no message get a proper error (grpc alone would answer UNKNOWN)."""

    def read(data: bytes) -> Any:
        if len(data) > MESSAGE_BYTES:
            return _TooLarge()
        try:
            return deserialize(data) if deserialize else data
        except DecodeError:
            return _Undecodable()

    return read


def check_message(request: Any) -> Any:
    """The request, if its bytes were a message of the method and not too many."""
    if isinstance(request, _Undecodable):
        raise OnefoldError(
            Kind.INVALID_ARGUMENT,
            Reason.REQUEST_MALFORMED,
            "The bytes are not a message of this method: wrong encoding, text that is not UTF-8, or data nested too "
            "deeply.",
        )
    if isinstance(request, _TooLarge):
        raise exhausted(Reason.MESSAGE_TOO_LARGE, f"The request is larger than {MESSAGE_BYTES} bytes.")
    return request


def fitting(answer: Any) -> Any:
    """The answer, unless it is larger than callers take: pages end before that, one large profile may not."""
    if answer.ByteSize() > MESSAGE_BYTES:
        raise exhausted(
            Reason.MESSAGE_TOO_LARGE,
            f"The answer is larger than {MESSAGE_BYTES} bytes. JSON text (data_format) is smaller than a Struct.",
        )
    return answer
