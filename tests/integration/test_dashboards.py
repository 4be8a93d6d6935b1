"""The alert rules and the dashboard ask for what is there."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from onefold.config import Settings
from onefold.errors import Kind, Reason
from onefold.v1.event_pb2 import NewEvent
from onefold.v1.events_service_pb2 import TrackRequest
from onefold.worker import work
from support.client import Client, failure
from support.promql import PromqlError, Query, parse
from support.scraping import Page, scrape
from support.serving import served

FOLDER = Path(__file__).resolve().parents[2] / "scripts" / "observability"
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"] for rule in group["rules"]
]
DASHBOARD: dict[str, Any] = json.loads((FOLDER / "grafana" / "onefold.json").read_text())
TARGETS = [(panel["title"], target) for panel in DASHBOARD["panels"] for target in panel["targets"]]
QUERIES = [(rule["alert"], rule["expr"]) for rule in RULES] + [(title, target["expr"]) for title, target in TARGETS]
# What Prometheus itself adds to every series, and the one series that it makes of a target.
OF_THE_TARGET = {"job", "instance"}
UP = {"up": OF_THE_TARGET}
# Values that may stand in a query though no series has them yet.
KNOWN_VALUES = {
    "grpc_code": {kind.name for kind in Kind} | {"OK", "CANCELLED"},
    "reason": {reason.value for reason in Reason},
    "job": {
        scraped["job_name"] for scraped in yaml.safe_load((FOLDER / "prometheus.yml").read_text())["scrape_configs"]
    },
}

pytestmark = [
    pytest.mark.filterwarnings("ignore:Call to deprecated close:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]


async def scraped(settings: Settings) -> Page:
    """What a server tells after a call that went well and one that did not, and a worker that has just started."""
    settings = settings.model_copy(update={"http_port": 0})
    http: list[str] = []
    ready, stop = asyncio.Event(), asyncio.Event()
    async with served(settings, on_http=http.append) as channel:
        await failure(
            Client(channel, "", "nobody").events.Track(TrackRequest(event=NewEvent(anonymous_id="x", name="Viewed")))
        )
        working = asyncio.create_task(work(settings, on_ready=ready.set, on_http=http.append, stop=stop))
        await ready.wait()
        pages = [await scrape(address) for address in http]
        stop.set()
        await working
    return Page(pages[1].series | pages[0].series)


async def test_every_query_names_metrics_and_labels_that_are_there(settings: Settings) -> None:
    """F26: each metric in an alert or a panel is one that a server or a worker tells, with the labels that the query
    picks by and adds up by, and with values that the label can have."""
    page = await scraped(settings)
    there = page.labels() | UP
    wrong: list[str] = []
    for name, text in QUERIES:
        query = parse(text)
        for selector in query.selectors:
            if selector.metric not in there:
                wrong.append(f"{name}: no metric {selector.metric}")
                continue
            has = there[selector.metric] | OF_THE_TARGET
            for label, operator, value in selector.matchers:
                possible = KNOWN_VALUES.get(label) or page.values(label)
                values = set(value.split("|")) if operator in ("=~", "!~") else {value}
                if label not in has or not values <= possible:
                    wrong.append(f"{name}: {selector.metric} has no {label} {value}")
        for labels, selectors in query.groupings:
            wrong += [
                f"{name}: {each.metric} has no {label}"
                for each in selectors
                for label in labels
                if label not in there.get(each.metric, set()) | OF_THE_TARGET
            ]
    assert wrong == []


@pytest.mark.parametrize(
    "text",
    ["rate(a)", "sum(rate(a[5m])", "a{b}", 'a{b="c"', "quantile(0.5, a)", "a b", "sum by (a b) (c)", "a[5q]", ")", ""],
)
def test_what_is_no_query_is_refused(text: str) -> None:
    """F26: the reading of queries above is not blind."""
    with pytest.raises(PromqlError):
        parse(text)


def test_what_a_query_names_is_found() -> None:
    """F26: selectors, matchers and groupings are found however deep they stand."""
    query: Query = parse('max by (kind) (a{b="c",d=~"e|f"}) / sum(rate(g_total[5m])) > 0.5')
    assert [(each.metric, each.has_range) for each in query.selectors] == [("a", False), ("g_total", True)]
    assert query.selectors[0].matchers == [("b", "=", "c"), ("d", "=~", "e|f")]
    assert [labels for labels, _ in query.groupings] == [{"kind"}, set()]


def test_alerts_say_what_to_do() -> None:
    """F26: each alert has a name of its own, a severity, and what it means and what to do about it."""
    names = [rule["alert"] for rule in RULES]
    assert len(set(names)) == len(names) >= 10
    for rule in RULES:
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"].keys() == {"summary", "action"}
        assert re.fullmatch(r"\d+[smh]", rule.get("for", "1m"))
        labels = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
        grouped = [by for by, _ in parse(rule["expr"]).groupings if by]
        assert labels <= (set.union(*grouped) if grouped else OF_THE_TARGET)


def test_panels_can_be_drawn() -> None:
    """F26: each panel has an id and a place of its own, a title, queries, and the data source that the reader picks."""
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
        assert panel["datasource"]["uid"] == "${datasource}"
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]) > 0
    [variable] = DASHBOARD["templating"]["list"]
    assert (variable["name"], variable["type"]) == ("datasource", "datasource")
