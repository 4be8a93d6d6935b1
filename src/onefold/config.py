"""Every setting and its default: a flag of the command, else ONEFOLD_* in the environment, else what stands here."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from onefold.callers import REFUSED_IDS
from onefold.limits import STREAM_KEY_CHECK_SECONDS, STREAM_WRITE_SECONDS

_SCHEMES = {"database_url": ("postgresql", "postgres"), "redis_url": ("redis", "rediss", "unix")}


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is reached from this machine only. Other names may lead anywhere."""
    try:
        return host == "localhost" or ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Settings(BaseSettings):
    """What the server and the worker need to know. Times in seconds."""

    model_config = SettingsConfigDict(env_prefix="ONEFOLD_", extra="ignore")

    @field_validator("database_url", "redis_url")
    @classmethod
    def _check_url(cls, value: str, info: ValidationInfo) -> str:
        schemes = _SCHEMES[str(info.field_name)]
        try:
            parts = urlsplit(value)
            # Reading the port is what finds one that is no number.
            right = parts.scheme in schemes and (parts.port is None or parts.port > 0)
        except ValueError:
            right = False
        if not right:
            raise ValueError(f"must be a URL such as {schemes[0]}://...")
        return value

    @field_validator("tls_key_file")
    @classmethod
    def _check_key(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if (value is None) != (info.data.get("tls_certificate_file") is None):
            raise ValueError("ONEFOLD_TLS_CERTIFICATE_FILE and ONEFOLD_TLS_KEY_FILE go together")
        return value

    @field_validator("tls_client_ca_file")
    @classmethod
    def _check_client_ca(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value is not None and info.data.get("tls_certificate_file") is None:
            raise ValueError("needs ONEFOLD_TLS_CERTIFICATE_FILE")
        return value

    @field_validator("allow_plaintext")
    @classmethod
    def _check_plaintext(cls, value: bool, info: ValidationInfo) -> bool:
        # Keys and people's data would be readable by whoever is on the way. A forgotten certificate must not do that.
        plaintext = info.data.get("tls_certificate_file") is None
        if plaintext and not value and not is_loopback(info.data.get("host", "localhost")):
            raise ValueError(
                "listening beyond loopback needs TLS (ONEFOLD_TLS_CERTIFICATE_FILE, ONEFOLD_TLS_KEY_FILE), or this "
                "setting or --allow-plaintext where a proxy ends TLS"
            )
        return value

    database_url: str = Field(description="PostgreSQL, as postgresql://USER:PASSWORD@HOST:PORT/DATABASE.")
    redis_url: str = Field(description="Redis or Valkey, as redis://HOST:PORT/0, rediss://... or unix:///PATH.")
    forget_secret: SecretStr | None = Field(
        default=None,
        min_length=16,
        description="Keys the hashes of forgotten identifiers; the same for ever. Default: one kept in the database.",
    )
    refused_ids: list[str] = Field(
        default=sorted(REFUSED_IDS),
        description="Ids that name nobody, as a JSON array; compared without regard to case.",
    )
    host: str = "127.0.0.1"
    port: int = Field(default=50051, ge=0, le=65535)
    tls_certificate_file: Path | None = Field(
        default=None, description="The server's certificate and its chain, PEM; read anew when it changes."
    )
    tls_key_file: Path | None = Field(default=None, validate_default=True, description="The certificate's key, PEM.")
    tls_client_ca_file: Path | None = Field(
        default=None,
        validate_default=True,
        description="Whose certificates callers need, PEM. Default: none.",
    )
    allow_plaintext: bool = Field(
        default=False,
        validate_default=True,
        description="Listen without TLS on more than this machine's loopback address: behind a proxy that ends TLS.",
    )
    http_host: str = "127.0.0.1"
    http_port: int | None = Field(
        default=None,
        ge=0,
        le=65535,
        description="Where /metrics, /livez and /readyz are answered; each process of a server has one port more "
        "than the one before it. Default: nowhere.",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_ok_share: float = Field(
        default=1.0, ge=0, le=1, description="The share of calls that went well which is logged; others always are."
    )
    server_processes: int = Field(default=1, ge=1, le=64, description="Processes of one server, on its one port.")
    server_connections: int = Field(
        default=10, ge=2, le=100, description="PostgreSQL connections of one process of a server."
    )
    worker_connections: int = Field(default=6, ge=2, le=100, description="PostgreSQL connections of one worker.")
    worker_jobs: int = Field(default=4, ge=1, le=64, description="Intents that one worker works on at a time.")
    acquire_seconds: float = Field(default=2.0, gt=0, le=30, description="How long a call waits for a connection.")
    concurrent_calls: int = Field(
        default=2_000, ge=1, description="Calls that one process of a server has in hand; more are refused."
    )
    concurrent_streams: int = Field(
        default=500, ge=1, description="Streams that one process of a server has open; more are refused."
    )
    stream_write_seconds: float = Field(
        default=STREAM_WRITE_SECONDS, gt=0, description="A stream whose caller reads nothing for so long is ended."
    )
    stream_key_check_seconds: float = Field(
        default=STREAM_KEY_CHECK_SECONDS, gt=0, description="How often the key of an open stream is looked at again."
    )
    drain_seconds: float = Field(default=10.0, ge=0, le=300, description="How long running calls may take at a stop.")
    sweep_seconds: float = Field(
        default=5.0, gt=0, le=10, description="How often a worker looks for forgotten intents."
    )
    retention_seconds: float = Field(default=600.0, gt=0, description="How often a worker drops what is over.")
