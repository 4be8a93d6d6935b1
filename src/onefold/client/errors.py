"""What a call that failed says, as exceptions.

A caller needs to know one thing first: did it happen? RefusedError says no. UnknownOutcomeError says that nobody can
tell from here: the same call again, with the same request_id or event_ids, does it once and gives the answer that was
lost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

_DETAILS_KEY: Final = "grpc-status-details-bin"


@dataclass(frozen=True, slots=True)
class Violation:
    """One wrong field of the request: its path, such as "event.name", and what is wrong with it."""

    field: str
    description: str


class CallError(grpc.RpcError):
    """A call that failed.

    `reason` is one of onefold.v1.ErrorReason without its prefix, or "" where gRPC itself failed the call (no
    connection, the caller's deadline). `metadata` is what the reason says with it. `retry_after_seconds` is set where
    sending the call again helps.
    """

    def __init__(
        self,
        status: grpc.StatusCode,
        message: str,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[Violation] = (),
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(f"{status.name}{f' / {reason}' if reason else ''}: {message}")
        self.status = status
        self.message = message
        self.reason = reason
        self.metadata = dict(metadata or {})
        self.violations = tuple(violations)
        self.retry_after_seconds = retry_after_seconds

    def code(self) -> grpc.StatusCode:
        """The gRPC code, as every grpc.RpcError of a call tells it."""
        return self.status

    def details(self) -> str:
        """The message, as every grpc.RpcError of a call tells it."""
        return self.message


class RefusedError(CallError):
    """The call was refused and had no effect."""


class UnknownOutcomeError(CallError):
    """The call may or may not have had its effect (UNAVAILABLE, DEADLINE_EXCEEDED, CANCELLED, INTERNAL, UNKNOWN)."""


class InvalidArgumentError(RefusedError):
    """The request is wrong whatever the state; `violations` names every wrong field."""


class NotFoundError(RefusedError):
    """There is no such profile, device, merge or key in the caller's project."""


class AlreadyExistsError(RefusedError):
    """What the call wants to make is there already, as something else."""


class FailedPreconditionError(RefusedError):
    """The state does not admit the call."""


class UnauthenticatedError(RefusedError):
    """The key is missing, wrong, expired or revoked."""


class PermissionDeniedError(RefusedError):
    """The key lacks the scope that the method needs."""


class ResourceExhaustedError(RefusedError):
    """A limit is reached; with `retry_after_seconds` it is the server's load, and passes."""


_KINDS: Final[Mapping[grpc.StatusCode, type[CallError]]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgumentError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExistsError,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPreconditionError,
    grpc.StatusCode.UNAUTHENTICATED: UnauthenticatedError,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDeniedError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhaustedError,
}


def read_error(status: grpc.StatusCode, message: str, trailers: Sequence[tuple[str, str | bytes]]) -> CallError:
    """The exception for a status and what came with it."""
    info, bad, retry = ErrorInfo(), BadRequest(), RetryInfo()
    has_retry = False
    for detail in _details(trailers):
        if detail.Is(ErrorInfo.DESCRIPTOR):
            detail.Unpack(info)
        elif detail.Is(BadRequest.DESCRIPTOR):
            detail.Unpack(bad)
        elif detail.Is(RetryInfo.DESCRIPTOR):
            has_retry = detail.Unpack(retry)
    return _KINDS.get(status, UnknownOutcomeError)(
        status,
        message,
        info.reason,
        info.metadata,
        [Violation(each.field, each.description) for each in bad.field_violations],
        retry.retry_delay.ToTimedelta().total_seconds() if has_retry else None,
    )


def lost_stream() -> CallError:
    """The server ended a stream that should have gone on, without saying why."""
    return UnknownOutcomeError(grpc.StatusCode.UNAVAILABLE, "The server ended the stream.")


def _details(trailers: Sequence[tuple[str, str | bytes]]) -> Sequence[Any]:
    for key, value in trailers:
        if key == _DETAILS_KEY and isinstance(value, bytes):
            try:
                return list(Status.FromString(value).details)
            except DecodeError:
                # A proxy's own idea of details. The code and the message still say what they say.
                return []
    return []
