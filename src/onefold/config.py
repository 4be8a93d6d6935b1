"""Every setting and its default: a flag of the command, else ONEFOLD_* in the environment, else what stands here.

Those that hold a secret may lie in a file instead, named by ONEFOLD_*_FILE, as orchestrators mount them.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from onefold.callers import REFUSED_IDS
from onefold.limits import STREAM_KEY_CHECK_SECONDS, STREAM_WRITE_SECONDS
from onefold.setting_files import FROM_FILES, PREFIX, environment_name, setting_from_file

# Names in the environment that are no settings of a process, but of a command, of a script or of docker-compose.yml.
_OTHER_NAMES: Final = {"ONEFOLD_DEV_API_KEY", "ONEFOLD_PUBLISH", "ONEFOLD_PROTO_BASE"}
_SECRET_OPTIONS: Final = {"password", "sslpassword"}
_REDACTED: Final = "***"
_SCHEMES = {"database_url": ("postgresql", "postgres"), "redis_url": ("redis", "rediss", "unix")}


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is reached from this machine only. Other names may lead anywhere."""
    try:
        return host == "localhost" or ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class _SecretFiles(PydanticBaseSettingsSource):
    """Reads the files that ONEFOLD_*_FILE name, without the line's end that editors leave."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        return self().get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        found = {field: setting_from_file(field) for field in FROM_FILES}
        return {field: value for field, value in found.items() if value is not None}


class Settings(BaseSettings):
    """What the server and the worker need to know. Times in seconds."""

    model_config = SettingsConfigDict(env_prefix="ONEFOLD_", extra="ignore")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags before the environment before files; nothing is read from a .env file."""
        return init_settings, env_settings, _SecretFiles(settings_cls)

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


@dataclass(frozen=True, slots=True)
class Told:
    """A setting as `onefold config` shows it: its value without any secret, where that came from, and what is wrong."""

    name: str
    value: str
    origin: str
    problem: str = ""


def told_settings(flags: Mapping[str, Any]) -> list[Told]:
    """Every setting that a command with these flags would have in this environment. Raises SettingFileError."""
    wrong: dict[str, str] = {}
    shown: dict[str, Any] = {}
    try:
        shown = Settings(**flags).model_dump()
    except ValidationError as error:
        wrong = {str(each["loc"][0]): each["msg"].lower() for each in error.errors()}
        # What is right is shown all the same; a value that is wrong might be a secret in the wrong place.
        shown = {name: field.default for name, field in Settings.model_fields.items() if not field.is_required()}
        given = {name.upper(): value for name, value in os.environ.items()}
        shown |= {
            name: given[environment_name(name)] for name in Settings.model_fields if environment_name(name) in given
        }
        shown |= flags
    return [
        Told(
            environment_name(name),
            "" if name in wrong else _without_secrets(name, shown.get(name)),
            "flag" if name in flags else _origin(name),
            wrong.get(name, ""),
        )
        for name in Settings.model_fields
    ]


def unknown_settings(environment: Mapping[str, str]) -> dict[str, str | None]:
    """The names in an environment that look like settings and are none, each with the nearest one that is, if any."""
    known = {environment_name(name) for name in Settings.model_fields}
    known |= {f"{environment_name(name)}_FILE" for name in FROM_FILES} | _OTHER_NAMES
    unknown = sorted(name for name in environment if name.upper().startswith(PREFIX) and name.upper() not in known)
    # Without the prefix, which all have in common and which would make any two of them look alike.
    words = [name.removeprefix(PREFIX) for name in known]
    nearest = {name: difflib.get_close_matches(name.upper().removeprefix(PREFIX), words, 1) for name in unknown}
    return {name: PREFIX + found[0] if found else None for name, found in nearest.items()}


def problems(error: ValidationError) -> Iterator[str]:
    """What is wrong with settings, each named as the environment has it."""
    for problem in error.errors():
        yield f"{environment_name(str(problem['loc'][0]))}: {problem['msg'].lower()}"


def redacted_url(url: str) -> str:
    """An address without its password, wherever in it that stands."""
    parts = urlsplit(url)
    netloc = parts.netloc
    if "@" in netloc:
        account, _, host = netloc.rpartition("@")
        user, colon, _ = account.partition(":")
        netloc = f"{user}{colon}{_REDACTED if colon else ''}@{host}"
    options = parse_qsl(parts.query, keep_blank_values=True)
    if any(name.lower() in _SECRET_OPTIONS for name, _ in options):
        hidden = [(name, _REDACTED if name.lower() in _SECRET_OPTIONS else value) for name, value in options]
        return urlunsplit(parts._replace(netloc=netloc, query=urlencode(hidden, safe="*/", quote_via=quote)))
    return url if netloc == parts.netloc else urlunsplit(parts._replace(netloc=netloc))


def _without_secrets(name: str, value: Any) -> str:
    if value is None:
        return ""
    if name.endswith("_url"):
        return redacted_url(str(value))
    if isinstance(value, SecretStr) or name.endswith(("secret", "password", "token")):
        return _REDACTED
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _origin(name: str) -> str:
    given = {each.upper() for each, value in os.environ.items() if value or name not in FROM_FILES}
    setting = environment_name(name)
    if setting in given:
        return "environment"
    if name in FROM_FILES and f"{setting}_FILE" in given:
        return "file"
    return "missing" if Settings.model_fields[name].is_required() else "default"
