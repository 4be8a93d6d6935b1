"""What an error tells of a request is bounded: it must reach the caller whatever was sent."""

from __future__ import annotations

import pytest

from onefold.errors import Kind, OnefoldError, Reason, Violation, invalid
from onefold.rpc.status import to_item_error, to_status

# What gRPC takes of trailers without being told otherwise; binary values travel in base64, texts percent-encoded.
TRAILER_BYTES = 8 * 1024


def trailer_bytes(error: OnefoldError) -> int:
    """How much of the trailers an error takes."""
    status = to_status(error)
    binary = sum((len(value) + 2) // 3 * 4 for _, value in status.trailing_metadata or ())
    return binary + sum(1 if 32 <= byte < 127 else 3 for byte in (status.details or "").encode()) + 200


@pytest.mark.parametrize(
    "key", ["names[7]", "data." + "x" * 90_000, "data." + "é" * 40_000, "data." + "\U0001f600" * 20_000]
)
@pytest.mark.parametrize("count", [1, 20, 1_000, 3_000])
def test_an_error_reaches_its_caller(key: str, count: int) -> None:
    """X2: however many fields are wrong and however long their paths, the error fits into the trailers of a call."""
    error = invalid([Violation(key, "must have printable characters only") for _ in range(count)])
    assert trailer_bytes(error) < TRAILER_BYTES
    # A thousand of them fit into one answer.
    assert to_item_error(error).ByteSize() * 1_000 < 4 * 2**20


@pytest.mark.parametrize("count", [1, 2, 50])
def test_what_fits_is_listed_whole(count: int) -> None:
    """X2: as many wrong fields as a caller can look at are all listed, each with its own path."""
    wrong = [Violation(f"names[{index}]", "is required") for index in range(count)]
    assert invalid(wrong).violations == tuple(wrong)


def test_what_is_left_out_is_counted() -> None:
    """X2: when there are more than fit, the first are listed and the last entry says how many are not."""
    told = invalid([Violation(f"events[{index}].name", "is required") for index in range(1_000)])
    assert told.message.startswith("1000 fields are not valid: events[0].name, ")
    *listed, last = told.violations
    assert len(listed) > 50
    assert [violation.field for violation in listed] == [f"events[{index}].name" for index in range(len(listed))]
    assert last.field == f"events[{len(listed)}].name"
    assert str(1_000 - len(listed)) in last.description


def test_metadata_is_bounded_too() -> None:
    """X2: an id of a caller's is told back whole; a longer text of theirs is not."""
    whole = OnefoldError(
        Kind.FAILED_PRECONDITION, Reason.REQUEST_ID_REUSED, "Reused.", {"request_id": "\U0001f600" * 128}
    )
    assert b"\xf0\x9f\x98\x80" * 128 in dict(to_status(whole).trailing_metadata or ())["grpc-status-details-bin"]
    long = OnefoldError(Kind.FAILED_PRECONDITION, Reason.ARRAY_NOT_MERGEABLE, "No.", {"field": "x" * 100_000})
    assert trailer_bytes(long) < TRAILER_BYTES
