"""What a generated placeholder must be, worked out apart from the code under test."""

from __future__ import annotations

import struct

_ASCII_UPPER = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def java_hash(text: str) -> int:
    """Java's String.hashCode as its documentation has it: s[0]*31^(n-1) + s[1]*31^(n-2) + ... + s[n-1] in an int."""
    data = text.encode("utf-16-be")
    units = struct.unpack(f">{len(data) // 2}H", data)
    total = sum(unit * 31**power for power, unit in enumerate(reversed(units)))
    [signed] = struct.unpack(">i", (total % 2**32).to_bytes(4, "big"))
    return int(signed)


def short_placeholder(user_id: str) -> str:
    """The placeholder of a user_id of at most 52 characters, written as any email is stored."""
    address = f"{user_id}+{java_hash(user_id)}@placeholder.email"
    return "".join(letter.lower() if letter in _ASCII_UPPER else letter for letter in address)
