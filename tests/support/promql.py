"""As much of PromQL as it takes to say which metrics and labels a query names. What it does not know, it refuses."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_TOKEN = re.compile(
    r"""\s*(?:
    (?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)
    |(?P<text>"(?:[^"\\]|\\.)*")
    |(?P<range>\[(?:\d+[smhdw]|\$__rate_interval)\])
    |(?P<number>\d+(?:\.\d+)?)
    |(?P<operator>=~|!~|!=|==|>=|<=|[-+*/<>=])
    |(?P<mark>[(){},])
    )""",
    re.VERBOSE,
)
_AGGREGATIONS = {"sum", "min", "max", "avg", "count"}
_FUNCTIONS = {"rate", "increase", "histogram_quantile"}
_WITH_RANGE = {"rate", "increase"}


@dataclass
class Selector:
    """A metric, and what its labels must be."""

    metric: str
    matchers: list[tuple[str, str, str]] = field(default_factory=list)
    has_range: bool = False


@dataclass
class Query:
    """What a query names: its selectors, and by which labels the ones within are added up."""

    selectors: list[Selector] = field(default_factory=list)
    groupings: list[tuple[set[str], list[Selector]]] = field(default_factory=list)


class PromqlError(ValueError):
    """A query is not PromQL, or more of it than this knows."""


def parse(text: str) -> Query:
    """What a query names. Raises PromqlError."""
    parser = _Parser(_tokens(text))
    parser.expression()
    parser.end()
    return parser.query


def _tokens(text: str) -> list[tuple[str, str]]:
    found, position = [], 0
    text = text.rstrip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None or match.lastgroup is None:
            raise PromqlError(f"what is {text[position : position + 20]!r}?")
        found.append((match.lastgroup, match[match.lastgroup]))
        position = match.end()
    return found


class _Parser:
    def __init__(self, tokens: list[tuple[str, str]]) -> None:
        self._tokens = tokens
        self._next = 0
        self.query = Query()

    def expression(self) -> None:
        self._term()
        while self._kind() == "operator":
            self._take("operator")
            self._term()

    def end(self) -> None:
        if self._next < len(self._tokens):
            raise PromqlError(f"more than a query: {self._tokens[self._next :]}")

    def _term(self) -> None:
        kind, text = self._peek()
        if kind == "number":
            self._take("number")
        elif text == "(":
            self._take("mark", "(")
            self.expression()
            self._take("mark", ")")
        elif text in _AGGREGATIONS:
            self._aggregation()
        elif self._tokens[self._next + 1 : self._next + 2] == [("mark", "(")]:
            self._function()
        else:
            self._selector()

    def _aggregation(self) -> None:
        self._take("name")
        labels: set[str] = set()
        if self._peek() == ("name", "by"):
            self._take("name")
            self._take("mark", "(")
            labels.add(self._take("name"))
            while self._peek()[1] == ",":
                self._take("mark", ",")
                labels.add(self._take("name"))
            self._take("mark", ")")
        before = len(self.query.selectors)
        self._take("mark", "(")
        self.expression()
        self._take("mark", ")")
        self.query.groupings.append((labels, self.query.selectors[before:]))

    def _function(self) -> None:
        name = self._take("name")
        if name not in _FUNCTIONS:
            raise PromqlError(f"unknown function {name}")
        before = len(self.query.selectors)
        self._take("mark", "(")
        self.expression()
        while self._peek()[1] == ",":
            self._take("mark", ",")
            self.expression()
        self._take("mark", ")")
        if name in _WITH_RANGE and not all(each.has_range for each in self.query.selectors[before:]):
            raise PromqlError(f"{name} needs a range")

    def _selector(self) -> None:
        selector = Selector(self._take("name"))
        if self._peek()[1] == "{":
            self._take("mark", "{")
            while self._peek()[1] != "}":
                label = self._take("name")
                operator = self._take("operator")
                selector.matchers.append((label, operator, self._take("text")[1:-1]))
                if self._peek()[1] == ",":
                    self._take("mark", ",")
            self._take("mark", "}")
        if self._kind() == "range":
            self._take("range")
            selector.has_range = True
        self.query.selectors.append(selector)

    def _peek(self) -> tuple[str, str]:
        return self._tokens[self._next] if self._next < len(self._tokens) else ("end", "")

    def _kind(self) -> str:
        return self._peek()[0]

    def _take(self, kind: str, text: str | None = None) -> str:
        found = self._peek()
        if found[0] != kind or (text is not None and found[1] != text):
            raise PromqlError(f"{text or kind} expected, not {found[1]!r}")
        self._next += 1
        return found[1]
