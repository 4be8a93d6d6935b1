"""What a project and a key may be. Pure."""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from onefold.callers import IdentifierType, Region, Scope
from onefold.errors import Kind, OnefoldError, Reason, failed_precondition
from onefold.identity.naming import IdentifierKind
from onefold.identity.rules import is_exclusive

_PROJECT_ID: Final = re.compile(r"[a-z][a-z0-9-]{1,30}[a-z0-9]")

ALL_SCOPES: Final = frozenset(Scope)
KEY_PREFIX: Final = "onefold"


def project_id_problem(project_id: str) -> str | None:
    """What is wrong with a project_id; None if nothing is."""
    if _PROJECT_ID.fullmatch(project_id):
        return None
    return "must be 3 to 32 lower-case letters, digits and hyphens, beginning with a letter, not ending with a hyphen"


def identifying_kinds(identifier_type: IdentifierType) -> list[IdentifierKind]:
    """The identifiers that identify in a project of this type (P2, P5)."""
    return [kind for kind in (IdentifierKind.EMAIL, IdentifierKind.USER_ID) if is_exclusive(identifier_type, kind)]


def check_region(identifier_type: IdentifierType, region: Region) -> None:
    """Refuses an EMAIL project in the EU (P4)."""
    if region is Region.EU and identifier_type is IdentifierType.EMAIL:
        raise failed_precondition(
            Reason.REGION_REFUSES_EMAIL, "Projects in region EU identify by USER_ID or HYBRID only."
        )


def check_type_stays(stored: IdentifierType, asked: IdentifierType | None) -> None:
    """Refuses to change a project's identifier type (P1)."""
    if asked is not None and asked is not stored:
        raise failed_precondition(
            Reason.IDENTIFIER_TYPE_FIXED,
            "A project's identifier type cannot be changed.",
            identifier_type=stored,
        )


@dataclass(frozen=True, slots=True)
class KeyText:
    """A key as a caller sends it: what finds it, and what proves it."""

    key_id: str
    secret: str


def split_key(text: str) -> KeyText:
    """Takes a key's text apart.

    Keys made here read onefold_PROJECT_KEYID_SECRET. Any other text may be registered as a key too (a development key,
    say); a digest of it is then its id.
    """
    parts = text.split("_")
    if len(parts) == 4 and parts[0] == KEY_PREFIX:
        return KeyText(parts[2], parts[3])
    return KeyText("x" + hashlib.sha256(text.encode()).hexdigest()[:15], text)


def secret_hash(secret: str) -> bytes:
    """What is stored of a secret. It is 192 random bits, so a plain SHA-256 cannot be searched backwards."""
    return hashlib.sha256(secret.encode()).digest()


def is_live(
    stored_hash: bytes, secret: str, now: datetime, expire_time: datetime | None, revoke_time: datetime | None
) -> bool:
    """Whether a key lets its caller in at `now`. The hashes are compared in constant time."""
    matches = hmac.compare_digest(stored_hash, secret_hash(secret))
    return matches and revoke_time is None and (expire_time is None or now < expire_time)


def unauthenticated() -> OnefoldError:
    """Unknown, revoked, expired and wrong look the same."""
    return OnefoldError(Kind.UNAUTHENTICATED, Reason.API_KEY_INVALID, "The API key is not known, or no longer valid.")
