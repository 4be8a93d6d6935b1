"""What a project and a key may be, as plain rules."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta

import pytest

from onefold.callers import IdentifierType, Region
from onefold.errors import Kind, OnefoldError, Reason
from onefold.identity.naming import IdentifierKind
from onefold.identity.rules import is_exclusive
from onefold.projects.rules import (
    check_region,
    check_type_stays,
    identifying_kinds,
    is_live,
    project_id_problem,
    secret_hash,
    split_key,
    unauthenticated,
)

EMAIL, USER_ID = IdentifierKind.EMAIL, IdentifierKind.USER_ID
NOW = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)
TICK = timedelta(microseconds=1)


@pytest.mark.parametrize("project_id", ["abc", "a-1", "a0b", "x" * 32, "shop-eu-2"])
def test_a_project_id_of_the_published_form_is_taken(project_id: str) -> None:
    """P6: 3 to 32 lower-case letters, digits and hyphens that begin with a letter name a project."""
    assert project_id_problem(project_id) is None


@pytest.mark.parametrize(
    "project_id",
    [
        "",
        "ab",
        "x" * 33,
        "Abc",
        "1ab",
        "-ab",
        "ab-",
        "a_b",
        "a b",
        "abc\n",
        "ab\N{LATIN SMALL LETTER E WITH ACUTE}",
        "a.b",
    ],
    ids=ascii,
)
def test_a_project_id_of_any_other_form_is_refused(project_id: str) -> None:
    """P6: a project_id that is short, long, badly begun or ended, or holds another character is refused."""
    assert project_id_problem(project_id)


@pytest.mark.parametrize(
    ("identifier_type", "kinds"),
    [
        (IdentifierType.EMAIL, [EMAIL]),
        (IdentifierType.USER_ID, [USER_ID]),
        (IdentifierType.HYBRID, [EMAIL, USER_ID]),
    ],
)
def test_the_type_decides_what_identifies(identifier_type: IdentifierType, kinds: list[IdentifierKind]) -> None:
    """P2, P5: exactly the unique identifiers identify, and an anonymous_id is single-use in every type."""
    assert identifying_kinds(identifier_type) == kinds
    assert [kind for kind in IdentifierKind if is_exclusive(identifier_type, kind)] == [
        *kinds,
        IdentifierKind.ANONYMOUS_ID,
    ]


@pytest.mark.parametrize("identifier_type", IdentifierType)
@pytest.mark.parametrize("region", Region)
def test_the_eu_takes_no_email_projects(identifier_type: IdentifierType, region: Region) -> None:
    """P4: of all types and regions, an EMAIL project in the EU alone is refused."""
    if (identifier_type, region) == (IdentifierType.EMAIL, Region.EU):
        with pytest.raises(OnefoldError) as refused:
            check_region(identifier_type, region)
        assert (refused.value.kind, refused.value.reason) == (Kind.FAILED_PRECONDITION, Reason.REGION_REFUSES_EMAIL)
    else:
        check_region(identifier_type, region)


@pytest.mark.parametrize("stored", IdentifierType)
@pytest.mark.parametrize("asked", [None, *IdentifierType])
def test_a_type_is_for_good(stored: IdentifierType, asked: IdentifierType | None) -> None:
    """P1: naming the type that is there, or none, passes; any other is refused and told which type it is."""
    if asked in (None, stored):
        check_type_stays(stored, asked)
        return
    with pytest.raises(OnefoldError) as refused:
        check_type_stays(stored, asked)
    assert (refused.value.kind, refused.value.reason) == (Kind.FAILED_PRECONDITION, Reason.IDENTIFIER_TYPE_FIXED)
    assert refused.value.metadata == {"identifier_type": stored.value}


def test_a_key_comes_apart_into_what_finds_it_and_what_proves_it() -> None:
    """P6: a key made here is found by its id and proved by its secret alone."""
    key = split_key("onefold_shop-eu_0123456789ab_secretsecret")
    assert (key.key_id, key.secret) == ("0123456789ab", "secretsecret")


@pytest.mark.parametrize("text", ["dev-key", "onefold_a_b", "onefold_a_b_c_d", "other_a_b_c", "_", "x" * 5000])
def test_any_other_text_is_proved_by_all_of_it(text: str) -> None:
    """P6: a text of another form is its own secret, and the id that is stored of it does not give it away."""
    key = split_key(text)
    assert key.secret == text
    assert text not in key.key_id
    assert split_key(text + "x").key_id != key.key_id


def test_a_secret_is_stored_as_its_sha_256() -> None:
    """P6: what is kept of a secret is its SHA-256, so that a copy of the table lets nobody in."""
    assert secret_hash("secret") == hashlib.sha256(b"secret").digest()


@pytest.mark.parametrize(
    ("secret", "expire_time", "revoke_time", "live"),
    [
        ("secret", None, None, True),
        ("Secret", None, None, False),
        ("", None, None, False),
        ("secret", NOW + TICK, None, True),
        ("secret", NOW, None, False),
        ("secret", NOW - TICK, None, False),
        ("secret", None, NOW - TICK, False),
        ("secret", NOW + TICK, NOW, False),
        ("wrong", NOW + TICK, None, False),
    ],
)
def test_a_key_lets_in_while_it_is_right_unexpired_and_unrevoked(
    secret: str, expire_time: datetime | None, revoke_time: datetime | None, live: bool
) -> None:
    """F74: a key ends at its expiry to the microsecond, at its revocation, and was never good with another secret."""
    assert is_live(secret_hash("secret"), secret, NOW, expire_time, revoke_time) is live


def test_what_is_told_of_a_refused_key_is_one_thing() -> None:
    """X2: unknown, revoked and expired keys get one error, which says nothing about which of them it was."""
    error = unauthenticated()
    assert (error.kind, error.reason) == (Kind.UNAUTHENTICATED, Reason.API_KEY_INVALID)
    assert not error.metadata
