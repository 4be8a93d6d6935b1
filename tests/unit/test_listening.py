"""What a server may listen on without TLS, and which TLS settings go together."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from onefold.config import Settings, is_loopback

URLS: dict[str, Any] = {"database_url": "postgresql://nobody@127.0.0.1:1/nothing", "redis_url": "redis://127.0.0.1:1/0"}
TLS: dict[str, Any] = {"tls_certificate_file": "server.pem", "tls_key_file": "key.pem"}


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "[::1]", "localhost"])
def test_loopback_is_this_machine(host: str) -> None:
    """P6: an address that only this machine reaches needs no TLS."""
    assert is_loopback(host)
    assert Settings(**URLS, host=host).host == host


@pytest.mark.parametrize(
    "host",
    ["0.0.0.0", "::", "[::]", "", "192.168.1.1", "example.com", "localhost.example.com", "127.1", "*"],
)
def test_what_others_may_reach_is_not(host: str) -> None:
    """P6: plaintext on an address that others may reach is refused, unless that is said to be meant, or with TLS."""
    assert not is_loopback(host)
    with pytest.raises(ValidationError, match="needs TLS") as raised:
        Settings(**URLS, host=host)
    assert [error["loc"] for error in raised.value.errors()] == [("allow_plaintext",)]
    assert Settings(**URLS, host=host, allow_plaintext=True).host == host
    assert Settings(**URLS, **TLS, host=host).host == host


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"tls_certificate_file": "server.pem"}, "tls_key_file"),
        ({"tls_key_file": "key.pem"}, "tls_key_file"),
        ({"tls_client_ca_file": "ca.pem"}, "tls_client_ca_file"),
    ],
)
def test_settings_of_tls_go_together(given: dict[str, Any], field: str) -> None:
    """X2: half a set of TLS files is refused by the setting that is wrong, and does not end in plaintext."""
    with pytest.raises(ValidationError) as raised:
        Settings(**URLS, **given)
    assert [error["loc"] for error in raised.value.errors()] == [(field,)]
