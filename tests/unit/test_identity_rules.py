"""How identifiers are written and what an update does to data fields, as plain rules."""

from __future__ import annotations

import hashlib
from typing import Any

import orjson
import pytest

from onefold.callers import IdentifierType
from onefold.errors import Kind, OnefoldError, Reason
from onefold.identity.naming import (
    anonymous_id_problem,
    email_problem,
    fold_ascii,
    generated_placeholder,
    is_placeholder,
    java_hash_code,
    name_person,
    user_id_problem,
)
from onefold.identity.rules import merge_fields, updated_fields

GOOD_EMAILS = [
    "person@example.com",
    "first.last@example.com",
    "person+tag@example.com",
    "p@mail.example.co.uk",
    "o'brien@example.com",
    "person@b\N{LATIN SMALL LETTER U WITH DIAERESIS}cher.example.com",
    "x" * 64 + "@example.com",
]

BAD_EMAILS = [
    "person",
    "@example.com",
    "person@",
    "person@localhost",
    "person@example",
    "person@@example.com",
    "a@b@example.com",
    "per son@example.com",
    " person@example.com",
    "person@example.com ",
    "person@example.com\n",
    "person\x00@example.com",
    ".person@example.com",
    "person.@example.com",
    "per..son@example.com",
    "person@example..com",
    "person@-example.com",
    "person@exam_ple.com",
    "Person <person@example.com>",
    "person@[127.0.0.1]",
    "p\N{LATIN SMALL LETTER U WITH DIAERESIS}@example.com",
    "\N{LATIN SMALL LETTER DOTLESS I}@example.com",
    "\N{KELVIN SIGN}@example.com",
    "\N{FULLWIDTH LATIN SMALL LETTER A}@example.com",
    "a@\N{FULLWIDTH LATIN SMALL LETTER E}xample.com",
    "a@\N{KELVIN SIGN}elvin.example.com",
    "a@e\N{LATIN SMALL LETTER LONG S}sence.example.com",
    "a\N{FULLWIDTH COMMERCIAL AT}example.com",
    "a@example\N{IDEOGRAPHIC FULL STOP}com",
    "@placeholder.email",
    "a\nb@placeholder.email",
]

# The ids of I2, each as some client writes it.
NOBODIES = [
    "null",
    "undefined",
    "none",
    "nil",
    "nan",
    "0",
    "anonymous",
    "guest",
    "[object Object]",
    "NULL",
    "Undefined",
    "None",
    "NIL",
    "NaN",
    "Anonymous",
    "GUEST",
    "[OBJECT OBJECT]",
]
BLANKS = [" ", "    ", "\t", "\n", "\N{NO-BREAK SPACE}", "\N{IDEOGRAPHIC SPACE}", "\N{ZERO WIDTH SPACE}"]
UNPRINTABLE = ["a\x00b", "a\nb", "a\tb", "a\x7fb", "a\N{LINE SEPARATOR}b", "a\N{RIGHT-TO-LEFT OVERRIDE}b"]
PADDED = [" a", "a ", "\N{NO-BREAK SPACE}a"]


@pytest.mark.parametrize("email", GOOD_EMAILS)
def test_an_address_in_the_usual_form_is_taken(email: str) -> None:
    """I1: ordinary addresses, tags, sub-domains and internationalised domains are accepted."""
    assert email_problem(email) is None


@pytest.mark.parametrize("email", BAD_EMAILS, ids=ascii)
def test_an_address_in_any_other_form_is_refused(email: str) -> None:
    """I1, F70: a malformed address, a non-ASCII local part and letters that only look like ASCII are refused."""
    assert email_problem(email)


def test_an_address_may_have_254_bytes() -> None:
    """I1: the limit of RFC 5321 is the limit here: 254 bytes pass and 255 do not."""
    domain = ".".join(["d" * 60, "d" * 60, "d" * 59, "example"])
    longest = "l" * (254 - 1 - len(domain)) + "@" + domain
    assert len(longest) == 254
    assert email_problem(longest) is None
    assert email_problem("l" + longest)


@pytest.mark.parametrize(
    ("email", "placeholder"),
    [
        ("some-user-id+-1073031548@placeholder.email", True),
        ("anything at all@placeholder.email", True),
        ("x@sub.placeholder.email", False),
        ("x@notplaceholder.email", False),
        ("placeholder.email@example.com", False),
        (None, False),
    ],
)
def test_a_placeholder_is_any_address_at_the_placeholder_domain(email: str | None, placeholder: bool) -> None:
    """I9: an address is a placeholder by its domain, whoever named it, and no neighbouring domain counts."""
    assert is_placeholder(email) is placeholder


@pytest.mark.parametrize("user_id", [*NOBODIES, *BLANKS, *UNPRINTABLE, *PADDED, "u" * 53, "u" * 3000], ids=ascii)
def test_a_user_id_that_names_nobody_is_refused(user_id: str) -> None:
    """I2, F69: ids that stand for nobody in any case, blanks, control characters, padding and long ids are refused."""
    assert user_id_problem(user_id)


@pytest.mark.parametrize(
    "user_id",
    [
        "a",
        "1",
        "00",
        "nulls",
        "guest-1",
        "a b",
        "o'brien",
        '"quoted"',
        "'; DROP TABLE profiles; --",
        "%",
        "\\",
        "u" * 52,
    ],
)
def test_any_other_printable_user_id_is_taken(user_id: str) -> None:
    """I2, F69: quotes, spaces inside and neighbours of refused ids are ordinary ids, up to 52 characters."""
    assert user_id_problem(user_id) is None


def test_the_list_of_refused_ids_can_be_another() -> None:
    """I2: the list of refused ids is a value that can be set, and the one that is set decides."""
    assert user_id_problem("Test", frozenset({"test"}))
    assert user_id_problem("guest", frozenset({"test"})) is None


@pytest.mark.parametrize(("length", "taken"), [(53, True), (256, True), (257, False), (3000, False)])
def test_a_long_user_id_is_limited_by_bytes(length: int, taken: bool) -> None:
    """I8: where long ids are allowed, 256 bytes pass and 257 do not."""
    assert (user_id_problem("u" * length, long=True) is None) is taken
    assert (user_id_problem("\N{LATIN SMALL LETTER E WITH ACUTE}" * (length // 2), long=True) is None) is (
        length <= 257
    )


@pytest.mark.parametrize("anonymous_id", [*NOBODIES, *BLANKS, *UNPRINTABLE, *PADDED, "x" * 257], ids=ascii)
def test_an_anonymous_id_that_stands_for_nobody_is_refused(anonymous_id: str) -> None:
    """I2: an anonymous_id that many clients share by mistake, or that cannot be written, is refused as a user_id is."""
    assert anonymous_id_problem(anonymous_id)


E_, U, H = IdentifierType.EMAIL, IdentifierType.USER_ID, IdentifierType.HYBRID


@pytest.mark.parametrize(
    ("project_type", "email", "user_id", "wrong"),
    [
        (E_, "a@example.com", "", []),
        (E_, "", "u", []),
        (E_, "a@example.com", "u", []),
        (E_, "", "", ["who"]),
        (U, "", "u", []),
        (U, "a@example.com", "u", []),
        (U, "a@example.com", "", ["who.email"]),
        (U, "", "", ["who"]),
        (H, "a@example.com", "", []),
        (H, "", "u", []),
        (H, "a@example.com", "u", []),
        (H, "", "", ["who"]),
        (H, "bad", "u", ["who.email"]),
        (E_, "a@example.com", "null", ["who.user_id"]),
        (E_, "bad", "null", ["who.email", "who.user_id"]),
        (H, "a@example.com", "u" * 53, ["who.user_id"]),
        (U, "", "u" * 53, ["who.user_id"]),
    ],
)
def test_a_request_names_people_as_the_projects_type_wants(
    project_type: IdentifierType, email: str, user_id: str, wrong: list[str]
) -> None:
    """P3, I1: the identifiers admitted depend on the type, and everything that is wrong is told at once."""
    named, violations = name_person(project_type, email, user_id, prefix="who")
    assert [violation.field for violation in violations] == wrong
    assert (named is None) is bool(wrong)


@pytest.mark.parametrize(
    ("project_type", "email", "taken"),
    [(E_, "", True), (E_, "a@example.com", False), (U, "", False), (H, "", False)],
)
def test_a_long_user_id_needs_the_one_path_that_allows_it(
    project_type: IdentifierType, email: str, taken: bool
) -> None:
    """I8: a user_id over 52 characters passes in an EMAIL project alone, and only without an email."""
    named, _ = name_person(project_type, email, "u" * 256, prefix="who", long_user_id=True)
    assert (named is not None) is taken


def test_a_name_is_normalised() -> None:
    """I1, I2: the email's ASCII letters are lower-cased and the user_id stays as it is."""
    named, _ = name_person(H, "First.Last+Tag@EXAMPLE.com", "UsEr", prefix="who")
    assert named is not None
    assert (named.email, named.user_id) == ("first.last+tag@example.com", "UsEr")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", 0),
        ("some-user-id", -1073031548),
        ("Aa", 2112),
        ("BB", 2112),
        ("polygenelubricants", -(2**31)),
        ("\N{GRINNING FACE}", 1772899),
    ],
    ids=ascii,
)
def test_the_hash_is_javas(text: str, code: int) -> None:
    """I8: the known values of String.hashCode, a collision, the lowest int, and two UTF-16 units for one character."""
    assert java_hash_code(text) == code


def test_the_placeholder_of_a_short_id_carries_the_hash() -> None:
    """I8: the known placeholder, up to 52 characters, is the id, a plus and the hash."""
    assert generated_placeholder("some-user-id") == "some-user-id+-1073031548@placeholder.email"
    assert generated_placeholder("Aa") == "aa+2112@placeholder.email"
    assert generated_placeholder("u" * 52).startswith("u" * 52 + "+")


def test_the_placeholder_of_a_long_id_is_its_sha_1() -> None:
    """I8: from 53 characters on the local part is the SHA-1 in hex; the digest is the one of the known value."""
    assert hashlib.sha1(b"some-user-id").hexdigest() == "4146832971d799352598ff1b5712c0b999f615d5"
    for user_id in ("u" * 53, "u" * 256, "\N{LATIN SMALL LETTER E WITH ACUTE}" * 53):
        assert generated_placeholder(user_id) == hashlib.sha1(user_id.encode()).hexdigest() + "@placeholder.email"


def test_folding_leaves_every_other_letter() -> None:
    """F70: only A to Z change, so neither the Kelvin sign nor a dotted capital I turns into an ASCII letter."""
    assert fold_ascii("AZaz09\N{KELVIN SIGN}\N{LATIN CAPITAL LETTER I WITH DOT ABOVE}") == (
        "azaz09\N{KELVIN SIGN}\N{LATIN CAPITAL LETTER I WITH DOT ABOVE}"
    )


MOBILE, EMAIL = {"mySettings": {"mobile": True}}, {"mySettings": {"email": True}}


@pytest.mark.parametrize(
    ("stored", "given", "nested", "after"),
    [
        (MOBILE, EMAIL, True, {"mySettings": {"mobile": True, "email": True}}),
        (MOBILE, EMAIL, False, EMAIL),
        ({"a": 1}, {"b": 2}, False, {"a": 1, "b": 2}),
        ({"a": 1}, {"a": None}, False, {"a": None}),
        ({"a": {"b": 1}}, {"a": {"b": None}}, True, {"a": {"b": None}}),
        ({"a": {"b": {"c": 1}}}, {"a": {"b": {"d": 2}}}, True, {"a": {"b": {"d": 2}}}),
        ({"a": {"b": 1}}, {"a": [2]}, True, {"a": [2]}),
        ({"a": [1]}, {"a": {"b": 2}}, True, {"a": {"b": 2}}),
        ({"a": [1]}, {"a": [2]}, True, {"a": [2]}),
        ({"a": {"b": 1}}, {"a": {}}, True, {"a": {"b": 1}}),
        ({"a": {"b": 1}}, {"a": {}}, False, {"a": {}}),
    ],
)
def test_an_update_replaces_or_merges_one_level(
    stored: dict[str, Any], given: dict[str, Any], nested: bool, after: dict[str, Any]
) -> None:
    """I4: objects are replaced, or merged one level deep when asked; a null is a value like another."""
    assert merge_fields(stored, given, nested=nested) == after


@pytest.mark.parametrize(
    ("stored", "given", "changed"),
    [
        ("{}", {}, False),
        ('{"a":1,"b":{"c":2,"d":3}}', {"b": {"d": 3, "c": 2}}, False),
        ('{"a":1}', {"a": True}, True),
        ('{"a":0}', {"a": False}, True),
        ('{"a":null}', {"a": None}, False),
        ("{}", {"a": None}, True),
    ],
)
def test_an_update_that_changes_nothing_is_seen_as_such(stored: str, given: dict[str, Any], changed: bool) -> None:
    """I14: the order of keys is no change; a boolean in the place of a number, or a null that was absent, is one."""
    assert (updated_fields(stored, given, nested=False) is not None) is changed


@pytest.mark.parametrize(
    "number", [2**63 - 1, -(2**63), 2**64 - 1, 2**53 + 1, -(2**53) - 1, 0], ids=lambda number: f"{number}"
)
def test_integers_are_exact_to_64_bits(number: int) -> None:
    """I4: an integer of 64 bits is stored, and kept by an update of another field, to the last digit."""
    text = updated_fields("{}", orjson.loads(f'{{"n":{number}}}'), nested=False)
    assert text is not None
    text = updated_fields(text, {"other": 1}, nested=False)
    assert text is not None
    assert f'"n":{number}' in text


def test_data_fields_end_at_a_megabyte() -> None:
    """X5: stored and given fields together may have 1,000,000 bytes and not one more."""
    stored = orjson.dumps({"a": "x" * 500_000}).decode()
    rest = 1_000_000 - len(stored) - len(',"b":""')
    full = updated_fields(stored, {"b": "y" * rest}, nested=False)
    assert full is not None
    assert len(full) == 1_000_000
    with pytest.raises(OnefoldError) as refused:
        updated_fields(stored, {"b": "y" * (rest + 1)}, nested=False)
    assert (refused.value.kind, refused.value.reason) == (Kind.RESOURCE_EXHAUSTED, Reason.DATA_FIELDS_LIMIT)
    assert refused.value.metadata == {"limit_bytes": "1000000"}
