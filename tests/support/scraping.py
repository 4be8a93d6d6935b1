"""Asking a process's side port, as a probe or a Prometheus does."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

Labels = frozenset[tuple[str, str]]


@dataclass(frozen=True)
class Answer:
    """An answer of HTTP; the names of headers in lower case."""

    status: int
    headers: dict[str, str]
    body: str


@dataclass
class Page:
    """What a scrape found: the value of each series, by name and labels."""

    series: dict[tuple[str, Labels], float] = field(default_factory=dict)

    def value(self, name: str, **labels: str) -> float:
        """The sum of the series with these labels, whatever others they have; 0 if there is none."""
        wanted = labels.items()
        return sum(value for (found, has), value in self.series.items() if found == name and wanted <= set(has))

    def labels(self) -> dict[str, set[str]]:
        """The names of the metrics, each with the names of its labels."""
        found: dict[str, set[str]] = {}
        for name, has in self.series:
            found.setdefault(name, set()).update(label for label, _ in has)
        return found

    def values(self, label: str) -> set[str]:
        """Every value that a label has anywhere."""
        return {value for _, has in self.series for name, value in has if name == label}


async def ask(address: str, request: bytes) -> Answer:
    """The answer to bytes that are sent as they are."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(request)
        return read(await asyncio.wait_for(reader.read(), 20))
    finally:
        writer.close()


def read(answer: bytes) -> Answer:
    """An answer, taken apart; its length must be what it says."""
    head, _, body = answer.decode().partition("\r\n\r\n")
    first, *lines = head.split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return Answer(int(first.split(" ")[1]), headers, body)


async def get(address: str, path: str, method: str = "GET") -> Answer:
    """An ordinary request."""
    return await ask(address, f"{method} {path} HTTP/1.1\r\nHost: {address}\r\nAccept: */*\r\n\r\n".encode())


async def scrape(address: str) -> Page:
    """What /metrics tells."""
    answer = await get(address, "/metrics")
    assert answer.status == 200
    page = Page()
    for family in text_string_to_metric_families(answer.body):
        for sample in family.samples:
            labels: dict[str, Any] = dict(sample.labels)
            key = (sample.name, frozenset(labels.items()))
            assert key not in page.series, key
            page.series[key] = sample.value
    return page
