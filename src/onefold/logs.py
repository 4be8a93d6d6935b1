"""Log lines: readable on a terminal, one JSON object a line elsewhere; always on stderr, never with anybody's data."""

from __future__ import annotations

import logging
import sys

import structlog


def configure() -> None:
    """Sets up structlog and the standard library's logging for this process."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    # arq logs the arguments of its jobs, redis and grpc their peers: only what is wrong is wanted of them.
    logging.basicConfig(level=logging.ERROR, stream=sys.stderr)
