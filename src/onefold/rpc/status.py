"""The one place where an error becomes a gRPC status."""

from __future__ import annotations

import math
from typing import Final

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

from onefold.errors import OnefoldError, shortened
from onefold.limits import EVENT_ID_CHARACTERS
from onefold.v1.error_reason_pb2 import ErrorReason
from onefold.v1.item_error_pb2 import FieldViolation, ItemError

DOMAIN = "onefold"
# Room for an id of a caller's, which is the longest that is told back whole.
_METADATA_BYTES: Final = 4 * EVENT_ID_CHARACTERS


def to_status(error: OnefoldError) -> grpc.Status:
    """The status of a call that failed: code, message, ErrorInfo, and BadRequest or RetryInfo where they apply."""
    metadata = {key: shortened(value, _METADATA_BYTES) for key, value in error.metadata.items()}
    details: list[Message] = [ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata)]
    if error.violations:
        details.append(
            BadRequest(
                field_violations=[
                    BadRequest.FieldViolation(field=violation.field, description=violation.description)
                    for violation in error.violations
                ]
            )
        )
    if error.retry_after_seconds is not None:
        fraction, whole = math.modf(error.retry_after_seconds)
        details.append(RetryInfo(retry_delay=Duration(seconds=int(whole), nanos=int(fraction * 1e9))))
    packed = []
    for detail in details:
        wrapped = Any()
        wrapped.Pack(detail)
        packed.append(wrapped)
    return rpc_status.to_status(Status(code=int(error.kind), message=error.message, details=packed))


def to_item_error(error: OnefoldError) -> ItemError:
    """The same error as the result of one item of a batch."""
    return ItemError(
        code=int(error.kind),
        reason=ErrorReason.Value(f"ERROR_REASON_{error.reason}"),
        message=error.message,
        field_violations=[
            FieldViolation(field=violation.field, description=violation.description) for violation in error.violations
        ],
    )
