"""Certificates: who a client certificate is for, and the server's own files, which may change while it runs.

A certificate names its identity in one subject alternative name, a URI "hermosis://tenant/role/subject". One without
is a worker of the default tenant by its common name: the least that a machine of an existing CA can be given that
still lets it work.
"""

import functools
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509.oid import NameOID

from hermosis_server.access.admission import Admission
from hermosis_server.errors import InvalidRequest, Unauthenticated
from hermosis_server.identity import DEFAULT_TENANT, EVERY_SESSION, Identity, checked_identity

logger = logging.getLogger(__name__)

SCHEME = "hermosis"


@functools.lru_cache(maxsize=1024)
def admission_of(pem: bytes) -> Admission:
    """Whom a client certificate lets in, once TLS has verified it.

    Raises:
      Unauthenticated: it names nobody, or several.
    """
    certificate = x509.load_pem_x509_certificate(pem)
    try:
        identity = _named_by_uri(certificate) or _named_by_common_name(certificate)
    except (InvalidRequest, ValueError) as error:
        raise Unauthenticated(f"the client certificate names nobody that this server can know: {error}") from None
    return Admission(identity=identity, expires_s=certificate.not_valid_after_utc.timestamp())


def uri_of(identity: Identity) -> str:
    """The subject alternative name that names an identity."""
    return f"{SCHEME}://{identity.tenant}/{identity.role.name.lower()}/{identity.subject}"


def _named_by_uri(certificate: x509.Certificate) -> Identity | None:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return None
    ours = [uri for uri in names.get_values_for_type(x509.UniformResourceIdentifier) if urlsplit(uri).scheme == SCHEME]
    if not ours:
        return None
    if len(ours) > 1:
        raise InvalidRequest(f"it has {len(ours)} names of the scheme {SCHEME}; wanted one")
    parts = ours[0].removeprefix(f"{SCHEME}://").split("/")
    if len(parts) != 3:
        raise InvalidRequest(f"{ours[0][:80]!r} is not written {SCHEME}://tenant/role/subject")
    tenant, role, subject = parts
    return checked_identity(subject=subject, tenant=tenant, role=role, sessions=EVERY_SESSION)


def _named_by_common_name(certificate: x509.Certificate) -> Identity:
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if len(names) != 1:
        raise InvalidRequest(f"it has {len(names)} common names and no name of the scheme {SCHEME}")
    subject = str(names[0].value)
    return checked_identity(subject=subject, tenant=DEFAULT_TENANT, role="worker", sessions=EVERY_SESSION)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerCertificate:
    """What a server shows, and whom it lets prove who they are, in PEM.

    Attributes:
      client_ca: of client certificates, which are then asked for; None asks for none.
    """

    certificate: bytes
    key: bytes
    client_ca: bytes | None


class CertificateFiles:
    """A server's certificate files, looked at again whenever somebody connects.

    Args:
      certificate: chain of the server, its own first.
      key:         of the certificate, without a password.
      client_ca:   of client certificates; None asks for none.

    Raises:
      InvalidRequest: a file cannot be used.
    """

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None) -> None:
        self._paths = (certificate, key, client_ca)
        self._stamps = self._look()
        self.current = self._load()

    def changed(self) -> ServerCertificate | None:
        """The files when they have changed and fit each other; None while there is nothing new to use."""
        try:
            stamps = self._look()
            if stamps == self._stamps:
                return None
            fresh = self._load()
        except InvalidRequest as error:
            # In the middle of a change one file may not fit another; the next one to connect makes us look again.
            logger.warning("event=certificates_not_taken reason=%r", str(error))
            return None
        self._stamps, self.current = stamps, fresh
        logger.info("event=certificates_taken certificate=%s", self._paths[0])
        return fresh

    def _look(self) -> tuple[tuple[int, int], ...]:
        stats = [_stat(path) for path in self._paths if path is not None]
        return tuple((stat.st_mtime_ns, stat.st_ino) for stat in stats)

    def _load(self) -> ServerCertificate:
        certificate, key, client_ca = (None if path is None else _content(path) for path in self._paths)
        assert certificate is not None, "there is a path"
        assert key is not None, "there is a path"
        try:
            shown = x509.load_pem_x509_certificates(certificate)[0].public_key()
            held = load_pem_private_key(key, None).public_key()
            if client_ca is not None:
                x509.load_pem_x509_certificates(client_ca)
        except (ValueError, TypeError) as error:
            raise InvalidRequest(
                f"a TLS file is not what it should be ({error}); give PEM without a password"
            ) from None
        public = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
        if shown.public_bytes(*public) != held.public_bytes(*public):
            raise InvalidRequest(f"{self._paths[1]} is not the key of {self._paths[0]}; give a pair")
        return ServerCertificate(certificate=certificate, key=key, client_ca=client_ca)


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise _unreadable(path, error) from None


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> InvalidRequest:
    return InvalidRequest(f"TLS file {path} cannot be read ({error.strerror})")
