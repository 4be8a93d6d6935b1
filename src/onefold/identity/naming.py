"""How identifiers are written: what is accepted, what is the same, what stands in for an email (I1, I2, I8). Pure."""

from __future__ import annotations

import enum
import hashlib
import re
from functools import lru_cache
from typing import Final, NamedTuple

import email_validator

from onefold.callers import REFUSED_IDS as REFUSED_IDS
from onefold.callers import IdentifierType
from onefold.errors import Violation
from onefold.limits import (
    ANONYMOUS_ID_BYTES,
    EMAIL_BYTES,
    USER_ID_CHARACTERS,
    USER_ID_WITH_PLACEHOLDER_BYTES,
)
from onefold.rpc.checks import text_problem

PLACEHOLDER_DOMAIN: Final = "placeholder.email"
_AT_PLACEHOLDER_DOMAIN: Final = "@" + PLACEHOLDER_DOMAIN


class IdentifierKind(enum.IntEnum):
    """What an identifier is; the numbers are those in the table identifiers."""

    EMAIL = 1
    USER_ID = 2
    ANONYMOUS_ID = 3


class Named(NamedTuple):
    """The identifiers of a request, checked and normalised. At least one is set.

    A tuple, as is whatever else a batch needs a thousand of: a frozen dataclass takes three times as long to make.
    """

    email: str | None
    user_id: str | None


_ASCII_LOWER: Final = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}


def fold_ascii(text: str) -> str:
    """Lower-cases A to Z and nothing else, so that no other letter ever turns into an ASCII one."""
    return text.lower() if text.isascii() else text.translate(_ASCII_LOWER)


def is_placeholder(email: str | None) -> bool:
    """Whether an address stands in for one that is not known (I9)."""
    return email is not None and email.endswith(_AT_PLACEHOLDER_DOMAIN)


# Nearly all addresses are of this form: words joined by single dots, hyphens, underscores or plus signs, and a domain
# of words. The library takes every one of them as it stands (a property test says so) and 36 microseconds to do it; it
# judges all others, and the domains that are never anybody's.
_PLAIN_EMAIL: Final = re.compile(
    r"(?=[^@]{1,64}@)[a-z0-9]++(?:[._+-][a-z0-9]++)*+@(?:(?![^.]{64})[a-z0-9]++(?:-[a-z0-9]++)*+\.){1,4}+[a-z]{2,24}"
)
_SPECIAL_DOMAINS: Final = tuple(f".{name}" for name in email_validator.SPECIAL_USE_DOMAIN_NAMES)


def email_problem(email: str) -> str | None:
    """What is wrong with an address whose ASCII letters are lower-cased already; None if nothing is (I1).

    The format is email-validator's, without DNS. An address that it would rewrite (full-width letters, a domain that
    normalises to another) is refused rather than rewritten: two spellings never become one person by surprise.
    """
    if len(email) <= EMAIL_BYTES and _PLAIN_EMAIL.fullmatch(email) and not email.endswith(_SPECIAL_DOMAINS):
        return None
    return _unusual_email_problem(email)


@lru_cache(maxsize=16_384)
def _unusual_email_problem(email: str) -> str | None:
    problem = text_problem(
        email, max_bytes=USER_ID_WITH_PLACEHOLDER_BYTES + 64 if is_placeholder(email) else EMAIL_BYTES
    )
    if problem:
        return problem
    if is_placeholder(email):
        return None if len(email) > len(PLACEHOLDER_DOMAIN) + 1 else "must be an email address"
    try:
        valid = email_validator.validate_email(
            email, check_deliverability=False, allow_smtputf8=False, test_environment=True, strict=True
        )
    except email_validator.EmailNotValidError:
        return "must be an email address with an ASCII part before the @"
    return None if valid.normalized == email else "must be written in its normal form"


def user_id_problem(user_id: str, refused: frozenset[str] = REFUSED_IDS, *, long: bool = False) -> str | None:
    """What is wrong with a user_id; None if nothing is (I2). `long` admits up to 256 bytes instead of 52 characters."""
    limits = {"max_bytes": USER_ID_WITH_PLACEHOLDER_BYTES} if long else {"max_characters": USER_ID_CHARACTERS}
    problem = text_problem(user_id, **limits)
    if problem:
        return problem
    if user_id.casefold() in refused:
        return "is an id that stands for nobody"
    return None


def anonymous_id_problem(anonymous_id: str, refused: frozenset[str] = REFUSED_IDS) -> str | None:
    """What is wrong with an anonymous_id; None if nothing is."""
    problem = text_problem(anonymous_id, max_bytes=ANONYMOUS_ID_BYTES)
    if problem:
        return problem
    if anonymous_id.casefold() in refused:
        return "is an id that stands for nobody"
    return None


_UUID: Final = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def name_person(
    project_type: IdentifierType,
    email: str,
    user_id: str,
    *,
    prefix: str,
    refused: frozenset[str] = REFUSED_IDS,
    long_user_id: bool = False,
) -> tuple[Named | None, list[Violation]]:
    """Reads the identifiers of a request ("" stands for none) as the project's type wants them (P3).

    Returns the person named, or None and everything that is wrong. `long_user_id`: a user_id alone in an EMAIL project
    may have 256 bytes, because the profile may have been created so by prefer_user_id (I8).
    """
    violations = []
    if email:
        email = fold_ascii(email)
        if problem := email_problem(email):
            violations.append(Violation(f"{prefix}.email", problem))
    if user_id:
        long = long_user_id and not email and project_type is IdentifierType.EMAIL
        if problem := user_id_problem(user_id, refused, long=long):
            violations.append(Violation(f"{prefix}.user_id", problem))
    if not email and not user_id:
        wanted = "user_id" if project_type is IdentifierType.USER_ID else "email or user_id"
        violations.append(Violation(prefix, f"needs {wanted}"))
    elif project_type is IdentifierType.USER_ID and not user_id:
        violations.append(Violation(f"{prefix}.email", "does not name a person in a USER_ID project; give user_id"))
    if violations:
        return None, violations
    return Named(email or None, user_id or None), []


def is_session_id(user_id: str | None) -> bool:
    """Whether a user_id is a UUID, as the temporary ones of unknown profiles are."""
    return user_id is not None and _UUID.fullmatch(user_id) is not None


def java_hash_code(text: str) -> int:
    """Java's String.hashCode: signed 32-bit, over UTF-16 units (source: java.lang.String)."""
    value = 0
    units = text.encode("utf-16-le")
    for low, high in zip(units[::2], units[1::2], strict=True):
        value = (31 * value + (high << 8 | low)) & 0xFFFFFFFF
    return value - (1 << 32) if value & 0x80000000 else value


def generated_placeholder(user_id: str) -> str:
    """The placeholder email of a profile that only has a user_id (I8), lower-cased as any email is."""
    if len(user_id) > USER_ID_CHARACTERS:
        # A name for something, not a secret: SHA-1 is what existing clients compute.
        local = hashlib.sha1(user_id.encode(), usedforsecurity=False).hexdigest()
    else:
        local = f"{user_id}+{java_hash_code(user_id)}"
    return fold_ascii(f"{local}@{PLACEHOLDER_DOMAIN}")
