"""How the server is reached: TLS with certificates that may be replaced while it runs, or plaintext.

The files are looked at when a connection is made, so a new certificate counts from the next connection on, and no
restart or signal is needed. Connections that are there stay; they last 30 minutes at most.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import grpc
import structlog

from onefold.errors import OnefoldError, Reason, failed_precondition

_log = structlog.get_logger()

_State: TypeAlias = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files: the server's certificate with its chain, its key, and whose certificates callers must have.

    Without `client_ca`, callers need none.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Credentials that follow the files. Raises OnefoldError if they are not good now."""
    certificates = _Certificates(files)
    return grpc.dynamic_ssl_server_credentials(
        certificates.first,
        certificates.newer,  # type: ignore[arg-type]  # None is what gRPC's documentation has for "go on"
        require_client_authentication=files.client_ca is not None,
    )


class _Certificates:
    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._seen: _State | None = None
        self._told: tuple[_State | None, str] | None = None
        try:
            self._seen = self._state()
            self.first = self._load()
        except (OSError, ValueError) as error:
            raise _unusable(error) from None

    def newer(self) -> grpc.ServerCertificateConfiguration | None:
        """What the files hold, if that changed; None to go on with what there is. Called by gRPC, at each handshake."""
        state = None
        try:
            state = self._state()
            if state == self._seen:
                return None
            configuration = self._load()
        except (OSError, ValueError) as error:
            # The old certificate may be good for weeks, and files are not replaced all at once: refusing every caller
            # would be worse. Told once, not at every handshake.
            if (state, _why(error)) != self._told:
                self._told = (state, _why(error))
                _log.error("certificate not reloaded; the old one stays", why=_why(error))
            self._seen = state
            return None
        self._seen = state
        _log.info("certificate reloaded")
        return configuration

    def _paths(self) -> list[Path]:
        files = [self._files.certificate, self._files.key]
        return files if self._files.client_ca is None else [*files, self._files.client_ca]

    def _state(self) -> _State:
        stats = [path.stat() for path in self._paths()]
        return tuple((stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in stats)

    def _load(self) -> grpc.ServerCertificateConfiguration:
        texts = [path.read_bytes() for path in self._paths()]
        # gRPC takes any bytes and would fail at the handshakes; this tells what is wrong, also that the two do not
        # belong together. The password stands for none: OpenSSL would ask for one on the terminal.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._files.certificate, self._files.key, password="")
        if self._files.client_ca is not None:
            context.load_verify_locations(self._files.client_ca)
        if [path.read_bytes() for path in self._paths()] != texts:
            raise ValueError("they are being changed")
        certificate, key, *client_ca = texts
        return grpc.ssl_server_certificate_configuration([(key, certificate)], client_ca[0] if client_ca else None)


def _unusable(error: Exception) -> OnefoldError:
    return failed_precondition(Reason.INTERNAL, f"The TLS files cannot be used: {_why(error)}.")


def _why(error: Exception) -> str:
    match error:
        case ssl.SSLError(reason="KEY_VALUES_MISMATCH"):
            return "certificate and key do not belong together"
        case ssl.SSLError():
            # OpenSSL names no file, and often no reason.
            return f"one of them is not PEM, or holds something else ({error.reason or 'nothing found'})"
        case OSError(filename=str() | Path() as name, strerror=str() as text):
            return f"{name}: {text}"
        case ValueError():
            return str(error)
        case _:
            return type(error).__name__
