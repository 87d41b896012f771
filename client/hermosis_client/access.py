"""Access: what a client shows to come in, and what it wants the server to show."""

import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

SYSTEM_CA = "system"
_LOOPBACK_NAMES = ("localhost", "unix")


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Proof of who we are, and how the server proves who it is. Empty strings stand for what there is not.

    Attributes:
      token:       as `hermosis token create` printed it, or a JWT of the server's identity provider.
      ca_file:     PEM file of the CA of the server's certificate, or "system" for the CAs that this machine trusts.
      certificate: PEM file of our own certificate.
      key:         PEM file of its key.
    """

    token: str = field(default="", repr=False)
    ca_file: str = ""
    certificate: str = ""
    key: str = ""

    @classmethod
    def of(
        cls,
        *,
        token: str | None = None,
        ca_file: str | os.PathLike[str] | None = None,
        certificate: str | os.PathLike[str] | None = None,
        key: str | os.PathLike[str] | None = None,
    ) -> "Access":
        """What was given; for None the environment: HERMOSIS_TOKEN, HERMOSIS_CA, HERMOSIS_CERTIFICATE, HERMOSIS_KEY.

        Raises:
          ValueError: the parts do not fit each other.
        """
        chosen = {
            name: os.environ.get(variable, "") if given is None else os.fspath(given)
            for name, variable, given in (
                ("token", "HERMOSIS_TOKEN", token),
                ("ca_file", "HERMOSIS_CA", ca_file),
                ("certificate", "HERMOSIS_CERTIFICATE", certificate),
                ("key", "HERMOSIS_KEY", key),
            )
        }
        access = cls(**chosen)
        if bool(access.certificate) != bool(access.key):
            raise ValueError("certificate and key belong together; give both or none")
        if access.certificate and not access.ca_file:
            raise ValueError(f"a certificate is shown over TLS; give ca_file too, {SYSTEM_CA!r} for public ones")
        return access

    @property
    def tls(self) -> bool:
        """Whether the connection is encrypted and the server has to prove who it is."""
        return bool(self.ca_file)

    def channel(self, address: str, options: Sequence[tuple[str, Any]]) -> grpc.Channel:
        """A channel to host:port.

        Raises:
          ValueError: a file cannot be read, or the token would travel where others can read it.
        """
        self.metadata(address)
        if not self.tls:
            return grpc.insecure_channel(address, options=options)
        roots = None if self.ca_file == SYSTEM_CA else _content(self.ca_file)
        pair = (_content(self.key), _content(self.certificate)) if self.certificate else (None, None)
        return grpc.secure_channel(address, grpc.ssl_channel_credentials(roots, *pair), options=options)

    def metadata(self, address: str) -> tuple[tuple[str, str], ...]:
        """What each call to host:port carries.

        As metadata and not as gRPC's call credentials: those refuse clear text, which is good enough on loopback.

        Raises:
          ValueError: the token is none, or would travel where others can read it.
        """
        if not self.token:
            return ()
        if not (self.token.isascii() and self.token.isprintable() and " " not in self.token):
            raise ValueError("the token has characters that no token has; copy it again")
        if not (self.tls or is_loopback(address)):
            raise ValueError(
                f"the token would travel to {address} in clear text; give ca_file (HERMOSIS_CA) to speak TLS"
            )
        return (("authorization", f"Bearer {self.token}"),)


def is_loopback(address: str) -> bool:
    """Whether host:port, or a Unix socket, is on this machine for certain."""
    host = address.rpartition(":")[0].strip("[]")
    if host in _LOOPBACK_NAMES or address.startswith("unix:"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _content(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"TLS file {path} cannot be read ({error.strerror})") from None
