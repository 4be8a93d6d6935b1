"""`scripts/bench [NAME ...] [--json]`: measures the figures named, or all."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

import grpc

from onefold.embedded import EmbeddedError

from .activating import activation_lag, activation_track_ratio
from .activation import evaluating
from .alongside import alongside
from .client import Stage, open_stage
from .disabling import disable_flatness, fanout_ratio
from .figure import Figure, Target, table
from .flooding import floods
from .identify import identify_flatness, visible_at_once
from .ingest import batch, latency, memory, scale, track_ratio, track_struct_ratio
from .merging import flatness
from .observing import observability_cost
from .operating import help_cpu, importing
from .outages import recovering, resuming
from .profiles import batch_update, get_profile_ratio, lookup_flatness
from .relocation import relocation
from .stage import NotMeasuredError, Processes, processes
from .starting import starting
from .timeline import timeline

# A run that takes longer is given up: what was measured until then is shown.
_RUN_SECONDS: Final = 1_800.0


@dataclass(frozen=True)
class Measurement:
    """How figures are measured, and what each is to be. `alone` needs no stage, `on_stage` is measured on the stage."""

    targets: dict[str, Target]
    alone: Callable[[], list[Figure]] | None = None
    on_stage: Callable[[Stage], Awaitable[list[Figure]]] | None = None


# In the order in which they run: starting processes comes first, because it must not happen once gRPC is in use here.
MEASUREMENTS: Final = (
    Measurement(
        {"start_cold": Target("value", "at most", 8), "start_warm": Target("value", "at most", 3)}, alone=starting
    ),
    Measurement({"help_cpu": Target("value", "at most", 0.3)}, alone=help_cpu),
    Measurement(
        {"import_ratio": Target("ratio", "at least", 0.4), "import_memory": Target("ratio", "at most", 1.3)},
        alone=importing,
    ),
    Measurement(
        {"evaluations": Target("value", "at least", 200), "evaluation_flatness": Target("ratio", "at most", 1.5)},
        alone=evaluating,
    ),
    Measurement({"observability_cost": Target("ratio", "at most", 1.1)}, alone=observability_cost),
    Measurement({"track_ratio": Target("ratio", "at least", 0.7)}, alone=track_ratio),
    Measurement({"track_struct_ratio": Target("ratio", "at least", 0.6)}, alone=track_struct_ratio),
    Measurement(
        {
            "batch_track_ratio": Target("ratio", "at least", 0.6),
            "batch_track_struct_ratio": Target("ratio", "at least", 0.4),
            "batch_track_ids_ratio": Target("ratio", "at least", 0.4),
            "stream_ratio": Target("ratio", "at least", 0.6),
            "batch_track_one_process_ratio": Target("ratio", "at least", 0.6),
            "stream_one_process_ratio": Target("ratio", "at least", 0.6),
        },
        alone=batch,
    ),
    Measurement({"scale": Target("ratio", "at least", 1)}, alone=scale),
    Measurement(
        {"ingest_memory": Target("value", "at most", 200), "ingest_memory_growth": Target("ratio", "at most", 1.1)},
        alone=memory,
    ),
    Measurement({f"track_p{percent}": Target("value", "at most", 100) for percent in (50, 95, 99)}, alone=latency),
    Measurement({"get_profile_ratio": Target("ratio", "at least", 0.6)}, alone=get_profile_ratio),
    Measurement({"lookup_flatness": Target("ratio", "at most", 1.3)}, alone=lookup_flatness),
    Measurement({"resume": Target("value", "at most", 45)}, alone=resuming),
    Measurement({"recovery": Target("value", "at most", 5)}, alone=recovering),
    Measurement({"identify_flatness": Target("ratio", "at most", 1.5)}, on_stage=identify_flatness),
    Measurement({"visible_at_once": Target("value", "at most", 0)}, on_stage=visible_at_once),
    Measurement(
        {"relocation_ratio": Target("ratio", "at least", 0.75), "relocation_memory": Target("value", "at most", 200)},
        on_stage=relocation,
    ),
    Measurement(
        {
            "timeline_flatness": Target("ratio", "at most", 1.3),
            "timeline_merge_flatness": Target("ratio", "at most", 3),
        },
        on_stage=timeline,
    ),
    Measurement(
        {
            "move_reads_p99": Target("ratio", "at most", 2),
            "move_chunk_p99": Target("value", "at most", 200),
            "move_lock_waits": Target("value", "at most", 0),
        },
        on_stage=alongside,
    ),
    Measurement({"disable_flatness": Target("ratio", "at most", 1.5)}, on_stage=disable_flatness),
    Measurement({"fanout_ratio": Target("ratio", "at least", 0.75)}, on_stage=fanout_ratio),
    Measurement(
        {"merge_flatness": Target("ratio", "at most", 1.5), "undo_flatness": Target("ratio", "at most", 1.5)},
        on_stage=flatness,
    ),
    Measurement({"floods": Target("ratio", "at most", 2)}, on_stage=floods),
    Measurement({"batch_update_ratio": Target("ratio", "at least", 0.4)}, on_stage=batch_update),
    Measurement({"activation_lag": Target("value", "at most", 2)}, on_stage=activation_lag),
    Measurement({"activation_track_ratio": Target("ratio", "at least", 0.95)}, on_stage=activation_track_ratio),
)
TARGETS: Final = {name: target for measurement in MEASUREMENTS for name, target in measurement.targets.items()}


@dataclass
class Report:
    """What a run has found out so far: a line of JSON for each figure as soon as it is known, or a table at the end."""

    names: list[str]
    as_json: bool
    figures: list[Figure] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def begins(self, measurement: Measurement) -> None:
        """Says on standard error what is being measured."""
        print(f"bench: measuring {', '.join(measurement.targets)} ...", file=sys.stderr, flush=True)

    def add(self, figures: list[Figure]) -> None:
        """Takes those figures that were asked for."""
        for figure in figures:
            if figure.name in self.names:
                self.figures.append(figure)
                if self.as_json:
                    print(figure.as_json(), flush=True)

    def fail(self, measurement: Measurement, why: str) -> None:
        """Notes that figures could not be measured."""
        self.problems.append(f"bench: {', '.join(measurement.targets)}: not measured: {why}")
        print(self.problems[-1], file=sys.stderr, flush=True)

    def end(self) -> int:
        """Shows the table, if there is to be one; returns the exit status: 1 if anything could not be measured."""
        if not self.as_json and self.figures:
            print(table((figure, TARGETS[figure.name]) for figure in self.figures))
        return 1 if self.problems else 0


def run(report: Report) -> None:
    """Measures all that the report wants."""
    wanted = [measurement for measurement in MEASUREMENTS if set(report.names) & set(measurement.targets)]
    deadline = time.monotonic() + _RUN_SECONDS
    for measurement in wanted:
        if measurement.alone is not None:
            report.begins(measurement)
            try:
                report.add(measurement.alone())
            except (NotMeasuredError, EmbeddedError) as error:
                report.fail(measurement, str(error))
    if any(measurement.on_stage for measurement in wanted):
        with processes() as running:
            asyncio.run(_run_on_stage(running, wanted, deadline, report))


async def _run_on_stage(running: Processes, wanted: list[Measurement], deadline: float, report: Report) -> None:
    async with open_stage(running) as stage:
        for measurement in wanted:
            if measurement.on_stage is None:
                continue
            report.begins(measurement)
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    report.add(await measurement.on_stage(stage))
            except TimeoutError:
                report.fail(measurement, f"the run took longer than {_RUN_SECONDS:.0f} s")
            except NotMeasuredError as error:
                report.fail(measurement, str(error))
            except grpc.aio.AioRpcError as error:
                report.fail(measurement, f"a call failed with {error.code().name}: {error.details()}")


def main() -> int:
    """Measures what the command line names; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measures onefold on a PostgreSQL and a Valkey of its own. A target that is missed is marked in "
        "the table; the exit status is 1 only if a figure could not be measured.",
    )
    parser.add_argument("name", nargs="*", help=f"which figures: {', '.join(TARGETS)}; default: all")
    parser.add_argument("--json", action="store_true", help="print one JSON line a figure, as soon as it is known")
    options = parser.parse_args()
    unknown = [name for name in options.name if name not in TARGETS]
    if unknown:
        parser.error(f"no such figure: {', '.join(unknown)} (there are {', '.join(TARGETS)})")
    # As Ctrl-C does: through the blocks that end the processes and remove the folder.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    report = Report(options.name or list(TARGETS), options.json)
    try:
        run(report)
    except KeyboardInterrupt:
        print("bench: stopped", file=sys.stderr)
        report.end()
        return 128 + signal.SIGINT
    except (NotMeasuredError, EmbeddedError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return report.end()


if __name__ == "__main__":
    sys.exit(main())
