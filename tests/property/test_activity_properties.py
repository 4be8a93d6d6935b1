"""However entries are spread over the places that they are read from, pages show each once and in order."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from onefold.activity.rules import Entry, Key, Looked, Place, bound, cut

START = datetime(2026, 11, 22, tzinfo=UTC)
NEWEST = Key(START + timedelta(days=1), Place.CREATED, "")

# Few moments and few ids, so that entries of several places fall together.
_keys = st.builds(
    Key,
    st.integers(0, 4).map(lambda number: START + timedelta(microseconds=number)),
    st.sampled_from(Place),
    st.sampled_from("abcd"),
)
_entries = st.dictionaries(_keys, st.booleans(), max_size=40)


def look(entries: dict[Key, bool], place: Place, before: Key, limit: int) -> Looked[None]:
    """What a statement does that reads a place: compares times and ids only."""
    before_time, before_id = bound(place, before)
    keys = sorted(
        (key for key in entries if key.place is place and (key.activity_time, key.id) < (before_time, before_id)),
        reverse=True,
    )[:limit]
    return Looked([Entry(key, None, entries[key]) for key in keys], more=len(keys) == limit)


@settings(deadline=None, max_examples=300)
@given(_entries, st.integers(1, 5), st.integers(1, 8))
def test_pages_show_each_entry_once_and_in_order(entries: dict[Key, bool], count: int, limit: int) -> None:
    """E8, E9: with any entries that are passed over, any size of page, and any number of rows looked at per place, a
    sequence of pages ends and yields every visible entry once, newest first."""
    seen: list[Key] = []
    before: Key | None = NEWEST
    pages = 0
    while before is not None:
        page, before = cut([look(entries, place, before, limit) for place in Place], count)
        assert len(page) <= count
        seen += [entry.key for entry in page]
        pages += 1
        assert pages <= len(entries) + 1
    assert seen == sorted((key for key, visible in entries.items() if visible), reverse=True)


@settings(deadline=None, max_examples=300)
@given(_keys, _keys)
def test_a_bound_is_what_it_says(key: Key, before: Key) -> None:
    """E9: an entry lies before a key exactly if its time and id lie before the bound of its place."""
    assert ((key.activity_time, key.id) < bound(key.place, before)) == (key < before)
