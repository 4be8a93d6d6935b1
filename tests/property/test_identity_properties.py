"""What holds of identifiers, placeholders, data fields and batches whatever the values are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any
from uuid import UUID

from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from onefold.callers import IdentifierType
from onefold.errors import OnefoldError
from onefold.identity.naming import (
    REFUSED_IDS,
    IdentifierKind,
    Named,
    email_problem,
    fold_ascii,
    generated_placeholder,
    java_hash_code,
    name_person,
    user_id_problem,
)
from onefold.identity.rules import (
    Call,
    Directory,
    Outcome,
    Person,
    SignupSource,
    VacatedError,
    is_exclusive,
    merge_fields,
    wanted_identifiers,
)
from support.placeholders import java_hash, short_placeholder

quick = settings(deadline=None, max_examples=100)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)
printable = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=60)

# --- data fields -----------------------------------------------------------------------------------------------------

scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=3)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)
fields = st.dictionaries(st.sampled_from("abcd"), values, max_size=4)


@quick
@given(stored=fields, given_fields=fields, nested=st.booleans())
def test_absent_keys_survive_and_given_ones_are_there(
    stored: dict[str, Any], given_fields: dict[str, Any], nested: bool
) -> None:
    """I4: keys absent from an update survive untouched, and no key appears that neither side has."""
    merged = merge_fields(stored, given_fields, nested=nested)
    assert merged.keys() == stored.keys() | given_fields.keys()
    for key in stored.keys() - given_fields.keys():
        assert merged[key] == stored[key]


@quick
@given(stored=fields, given_fields=fields, nested=st.booleans())
def test_the_same_update_again_changes_nothing(
    stored: dict[str, Any], given_fields: dict[str, Any], nested: bool
) -> None:
    """I4: an update is idempotent, and it leaves the objects it was given as they were."""
    before = repr((stored, given_fields))
    once = merge_fields(stored, given_fields, nested=nested)
    assert repr(merge_fields(once, given_fields, nested=nested)) == repr(once)
    assert repr((stored, given_fields)) == before


@quick
@given(stored=fields, given_fields=fields)
def test_objects_are_merged_one_level_deep_and_no_deeper(stored: dict[str, Any], given_fields: dict[str, Any]) -> None:
    """I4: merged, two objects hold both sides' keys and whatever lies deeper is the update's; else all is replaced."""
    replaced = merge_fields(stored, given_fields, nested=False)
    merged = merge_fields(stored, given_fields, nested=True)
    for key, value in given_fields.items():
        assert replaced[key] is value
        old = stored.get(key)
        if not (isinstance(old, dict) and isinstance(value, dict)):
            assert merged[key] is value
            continue
        assert merged[key].keys() == old.keys() | value.keys()
        for inner in merged[key]:
            assert merged[key][inner] is (value[inner] if inner in value else old[inner])


# --- how identifiers are written -------------------------------------------------------------------------------------


@quick
@given(texts)
@example("\N{KELVIN SIGN}\N{LATIN CAPITAL LETTER I WITH DOT ABOVE}\N{FULLWIDTH LATIN CAPITAL LETTER A}")
def test_folding_changes_ascii_capitals_only(text: str) -> None:
    """F70: each of A to Z becomes its small letter, every other character stays, and folding again does nothing."""
    folded = fold_ascii(text)
    assert len(folded) == len(text)
    for before, after in zip(text, folded, strict=True):
        assert after == (chr(ord(before) + 32) if "A" <= before <= "Z" else before)
    assert fold_ascii(folded) == folded


@quick
@given(st.text(st.characters(max_codepoint=0x10FFFF, exclude_categories=["Cs"]), max_size=300))
def test_the_hash_is_the_one_java_documents(text: str) -> None:
    """I8: over UTF-16 units and in 32 signed bits, for characters of one unit and of two."""
    assert java_hash_code(text) == java_hash(text)


@quick
@given(printable)
def test_a_generated_placeholder_is_an_address_that_can_be_named(user_id: str) -> None:
    """I8, I9: whatever user_id it stands for, a generated placeholder is the documented one and is a good email."""
    assume(user_id_problem(user_id, long=True) is None)
    placeholder = generated_placeholder(user_id)
    assert email_problem(placeholder) is None
    if len(user_id) <= 52:
        assert placeholder == short_placeholder(user_id)
    named, _ = name_person(IdentifierType.EMAIL, placeholder, "", prefix="who")
    assert named is not None
    assert named.email == placeholder


# For each ASCII letter, letters that some case mapping or normalisation turns into it.
LOOKALIKES = {
    "i": "\N{LATIN SMALL LETTER DOTLESS I}\N{LATIN CAPITAL LETTER I WITH DOT ABOVE}\N{MATHEMATICAL BOLD SMALL I}",
    "k": "\N{KELVIN SIGN}",
    "s": "\N{LATIN SMALL LETTER LONG S}",
    "a": "\N{FEMININE ORDINAL INDICATOR}",
    "1": "\N{SUPERSCRIPT ONE}\N{CIRCLED DIGIT ONE}",
    "@": "\N{FULLWIDTH COMMERCIAL AT}\N{SMALL COMMERCIAL AT}",
    ".": "\N{FULLWIDTH FULL STOP}\N{IDEOGRAPHIC FULL STOP}\N{ONE DOT LEADER}",
}
ascii_emails = st.builds(
    lambda local, label, domain: f"{local}@{label}.{domain}",
    st.text("aikst19", min_size=1, max_size=8),
    st.text("aiks1", min_size=1, max_size=8),
    st.sampled_from(["example.com", "example.org", "kiosk.example"]),
)


@quick
@given(email=ascii_emails, data=st.data())
def test_a_letter_that_looks_like_ascii_never_makes_an_ascii_address(email: str, data: st.DataObject) -> None:
    """F70, I1: with any letter swapped for one that looks like it, an address is refused or stays another address.

    Before the @ it is always refused. In the domain it may pass only where the letter is one of its own in
    internationalised domain names (the dotless i), and it is kept then, so that the two never meet.
    """
    position = data.draw(st.integers(0, len(email) - 1))
    letter = email[position]
    swaps = LOOKALIKES.get(letter, "")
    if letter.isascii() and letter not in "@.":
        swaps += chr(ord(letter) + 0xFEE0) + chr(ord(letter.upper()) + 0xFEE0)
    swap = data.draw(st.sampled_from(swaps))
    lookalike = email[:position] + swap + email[position + 1 :]

    assert email_problem(email) is None
    named, _ = name_person(IdentifierType.EMAIL, lookalike, "", prefix="who")
    if position <= email.index("@") or swap != "\N{LATIN SMALL LETTER DOTLESS I}":
        assert named is None
    elif named is not None:
        assert named.email == lookalike
        assert named.email != email


@quick
@given(st.text("abkAK.+", min_size=1, max_size=6), st.text("abkAK.+", min_size=1, max_size=6))
def test_addresses_are_one_exactly_when_they_differ_in_ascii_case(first: str, second: str) -> None:
    """F70, I1: two accepted addresses name one person if and only if they differ in ASCII case alone."""
    names = [name_person(IdentifierType.EMAIL, f"{one}@example.com", "", prefix="who")[0] for one in (first, second)]
    assume(names[0] is not None and names[1] is not None)
    assert (names[0] == names[1]) is (first.lower() == second.lower())


@quick
@given(st.text(st.sampled_from("a0Z-\N{LATIN SMALL LETTER E WITH ACUTE}\N{GRINNING FACE}\N{HANGUL SYLLABLE HAN}")))
@example("\N{GRINNING FACE}" * 52)
@example("\N{GRINNING FACE}" * 53)
def test_a_user_id_is_limited_by_characters_and_not_by_bytes(user_id: str) -> None:
    """I2: 52 characters pass, however many bytes they take, and 53 do not, however few."""
    assume(user_id and user_id not in REFUSED_IDS)
    assert (user_id_problem(user_id) is None) is (len(user_id) <= 52)


@quick
@given(st.sampled_from(sorted(REFUSED_IDS)), st.lists(st.booleans(), min_size=20, max_size=20))
def test_an_id_that_stands_for_nobody_is_refused_in_any_case(refused: str, upper: list[bool]) -> None:
    """I2, F69: no mixture of capitals lets a refused id through."""
    mixed = "".join(letter.upper() if up else letter for letter, up in zip(refused, upper, strict=False))
    assert user_id_problem(mixed)


# --- a batch ---------------------------------------------------------------------------------------------------------

EMAILS = ["a@example.com", "b@example.com", generated_placeholder("u")]
USER_IDS = ["u", "v", "w"]
Row = tuple[str | None, str | None]


@dataclass
class Profiles:
    """A plain store: profile n is the n-th that was made, so a lower number is an older profile."""

    project_type: IdentifierType
    rows: list[Row] = field(default_factory=list)

    def holders(self, kind: IdentifierKind, value: str) -> list[int]:
        """Who holds an identifier, the oldest first."""
        column = 0 if kind is IdentifierKind.EMAIL else 1
        return [number for number, row in enumerate(self.rows) if row[column] == value]

    def directory(self, items: Sequence[tuple[Named, Call]]) -> Directory:
        """What a look-up of everybody that the items name gives."""
        directory = Directory(self.project_type, (UUID(int=number) for number in count(1_000)))
        people: dict[int, Person] = {}
        for named, call in items:
            for kind, value in wanted_identifiers(self.project_type, named, prefer_user_id=call.prefer_user_id):
                for number in self.holders(kind, value)[:1]:
                    email, user_id = self.rows[number]
                    person = people.setdefault(
                        number, Person(UUID(int=number), email, user_id, stored_email=email, stored_user_id=user_id)
                    )
                    directory.add(kind, value, person)
        return directory

    def write(self, directory: Directory) -> None:
        """Stores what the directory has made of people. An identifier that must be unique is so afterwards."""
        for person in directory.changed_people():
            self.rows[person.profile_id.int] = (person.email, person.user_id)
        for person in directory.new_people():
            person.profile_id = UUID(int=len(self.rows))
            self.rows.append((person.email, person.user_id))
        for kind in (IdentifierKind.EMAIL, IdentifierKind.USER_ID):
            if is_exclusive(self.project_type, kind):
                held = [row[0 if kind is IdentifierKind.EMAIL else 1] for row in self.rows]
                held = [value for value in held if value is not None]
                assert len(held) == len(set(held))

    def run(self, items: Sequence[tuple[Named, Call]]) -> list[tuple[str, int | None]]:
        """Places the items as one batch, with a new round where one must be looked up anew."""
        placed: list[Callable[[], tuple[str, int | None]]] = []
        waiting = list(items)
        while waiting:
            directory = self.directory(waiting)
            done = 0
            for named, call in waiting:
                try:
                    placement = directory.place(named, call)
                except VacatedError:
                    break
                except OnefoldError as error:
                    placed.append(_fixed(str(error.reason)))
                else:
                    placed.append(_later(placement.outcome, placement.person))
                done += 1
            assert done, "a batch that is looked up anew must get on"
            self.write(directory)
            waiting = waiting[done:]
        return [result() for result in placed]


def _fixed(result: str) -> Callable[[], tuple[str, int | None]]:
    return lambda: (result, None)


def _later(outcome: Outcome, person: Person | None) -> Callable[[], tuple[str, int | None]]:
    # Whom an item made gets its number when the batch is written.
    return lambda: (outcome.name, person.profile_id.int if person else None)


def names(project_type: IdentifierType) -> st.SearchStrategy[Named]:
    """What requests of the project can name."""
    email, user_id = st.sampled_from(EMAILS), st.sampled_from(USER_IDS)
    forms = [st.builds(Named, st.none(), user_id), st.builds(Named, email, user_id)]
    if project_type is not IdentifierType.USER_ID:
        forms.append(st.builds(Named, email, st.none()))
    return st.one_of(forms)


calls = st.builds(
    Call,
    st.just(SignupSource.EVENT),
    creates=st.booleans(),
    prefer_user_id=st.booleans(),
    update_existing_only=st.booleans(),
)


@st.composite
def batches(draw: st.DrawFn) -> tuple[IdentifierType, list[tuple[Named, Call]], list[tuple[Named, Call]]]:
    """A project's type, the writes that came before, and the batch; few identifiers, so that they meet often."""
    project_type = draw(st.sampled_from(IdentifierType))
    creating = st.just(Call(SignupSource.PROFILE_UPDATE, prefer_user_id=True))
    before = draw(st.lists(st.tuples(names(project_type), creating), max_size=5))
    batch = draw(st.lists(st.tuples(names(project_type), calls), max_size=8))
    return project_type, before, batch


READING = Call(SignupSource.EVENT, creates=False)
MAKING = Call(SignupSource.EVENT, prefer_user_id=True)


@settings(deadline=None, max_examples=400)
@given(batches())
@example(
    # The older of two stored profiles takes the user_id of the younger.
    (
        IdentifierType.EMAIL,
        [(Named("a@example.com", None), MAKING), (Named("b@example.com", "v"), MAKING)],
        [(Named("a@example.com", "v"), READING), (Named(None, "v"), READING)],
    )
)
@example(
    # The same of two profiles that the batch makes itself.
    (
        IdentifierType.EMAIL,
        [],
        [
            (Named("a@example.com", None), MAKING),
            (Named("b@example.com", "v"), MAKING),
            (Named("a@example.com", "v"), READING),
            (Named(None, "v"), READING),
        ],
    )
)
@example(
    # The oldest holder of a user_id lets it go, so that the next one must be looked up.
    (
        IdentifierType.EMAIL,
        [(Named("a@example.com", "v"), MAKING), (Named("b@example.com", "v"), MAKING)],
        [(Named("a@example.com", "w"), READING), (Named(None, "v"), READING)],
    )
)
def test_a_batch_does_what_its_items_do_one_by_one(
    drawn: tuple[IdentifierType, list[tuple[Named, Call]], list[tuple[Named, Call]]],
) -> None:
    """I3, E4, P2: a batch gives each item the outcome and the profile that it would get as a call of its own."""
    project_type, before, batch = drawn
    alone, together = Profiles(project_type), Profiles(project_type)
    for store in (alone, together):
        for item in before:
            store.run([item])
    results = [result for item in batch for result in alone.run([item])]
    assert together.run(batch) == results
    assert together.rows == alone.rows
