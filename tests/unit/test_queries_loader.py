"""Statements out of .sql files."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from onefold.db.queries import Queries

_numbers = itertools.count(1)
Load = Callable[[str], Queries]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Loads a text as the queries.sql of a package."""

    def load(text: str) -> Queries:
        name = f"queries_of_test_{next(_numbers)}"
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
        (tmp_path / name / "queries.sql").write_text(text, encoding="utf-8")
        monkeypatch.syspath_prepend(str(tmp_path))
        return Queries(name)

    return load


@pytest.mark.parametrize(
    ("written", "sent", "parameters"),
    [
        ("SELECT 1;", "SELECT 1", ()),
        ("SELECT :b, :a, :b", "SELECT $1, $2, $1", ("b", "a")),
        ("SELECT :a::text, b::uuid []", "SELECT $1::text, b::uuid []", ("a",)),
        ("SELECT now() - :by::interval", "SELECT now() - $1::interval", ("by",)),
        ("SELECT '1970-01-01 00:00Z'::timestamptz", "SELECT '1970-01-01 00:00Z'::timestamptz", ()),
        ("SELECT (:a, :a_b, :a1)", "SELECT ($1, $2, $3)", ("a", "a_b", "a1")),
        ("SELECT a[1:2]", "SELECT a[1:2]", ()),
        ("-- why :not\nSELECT :a\n    -- and :neither\nFROM t;", "SELECT $1\nFROM t", ("a",)),
    ],
)
def test_a_parameter_is_a_colon_and_a_name(load: Load, written: str, sent: str, parameters: tuple[str, ...]) -> None:
    """Names become PostgreSQL's numbers in order of first use; casts, times of day and comments stay what they are."""
    query = load(f"-- A file.\n\n-- name: one\n{written}\n").one
    assert (query.name, query.sql, query.parameters) == ("one", sent, parameters)


def test_a_file_holds_many(load: Load) -> None:
    """Each statement ends where the next one's name stands, and iteration gives all of them in order."""
    queries = load("-- name: one\nSELECT :a;\n\n-- name: two\n-- Because.\nSELECT :b;\n")
    assert [(query.name, query.sql) for query in queries] == [("one", "SELECT $1"), ("two", "SELECT $1")]
    assert queries.two.parameters == ("b",)


def test_a_name_stands_once(load: Load) -> None:
    """A file that names two statements alike is refused when it is loaded, not when the wrong one runs."""
    with pytest.raises(ValueError, match="twice"):
        load("-- name: one\nSELECT 1;\n-- name: one\nSELECT 2;\n")


def test_a_name_that_is_not_there(load: Load) -> None:
    """A statement that the file lacks is an AttributeError that names it."""
    with pytest.raises(AttributeError, match="missing"):
        _ = load("-- name: one\nSELECT 1;\n").missing


def test_values_go_by_name(load: Load) -> None:
    """Values are put in the order of the numbers; a value that is missing, superfluous or misnamed is refused."""
    query = load("-- name: one\nSELECT :b, :a, :b;\n").one
    assert query.arguments({"a": 1, "b": 2}) == [2, 1]
    with pytest.raises(TypeError):
        query.arguments({"a": 1})
    with pytest.raises(TypeError):
        query.arguments({"a": 1, "b": 2, "c": 3})
    with pytest.raises(KeyError):
        query.arguments({"a": 1, "c": 3})
