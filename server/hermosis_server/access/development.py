"""Certificates for development: a certificate authority of one's own, a server's and a client's certificate.

Good for a laptop, a lab or a test. What is worth protecting deserves a CA whose key does not lie beside what it signs.
"""

import datetime
import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from hermosis_server.access.certificates import uri_of
from hermosis_server.errors import InvalidRequest
from hermosis_server.identity import Identity

VALID_DAYS = 365
# Some clocks are a little behind.
_BEFORE = datetime.timedelta(hours=1)


def make_certificates(folder: Path, *, hosts: Sequence[str], client: Identity) -> list[Path]:
    """Writes ca.pem, server.pem and client.pem with their keys; an authority that is there is used again.

    Args:
      folder: made if missing, readable by its owner only; other files of these names are written over.
      hosts:  names and addresses by which clients call the server.
      client: whom the client certificate is for.

    Returns:
      the files that were written.

    Raises:
      InvalidRequest: the folder has half an authority, or none of ours.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    written = []
    ca_paths = folder / "ca.pem", folder / "ca.key"
    if any(path.exists() for path in ca_paths):
        authority, authority_key = _read_authority(*ca_paths)
    else:
        authority_key = ec.generate_private_key(ec.SECP256R1())
        authority = _authority(authority_key)
        written += _write(ca_paths, authority, authority_key)
    for name, alternatives, usage in (
        ("server", [_host(host) for host in hosts], ExtendedKeyUsageOID.SERVER_AUTH),
        ("client", [x509.UniformResourceIdentifier(uri_of(client))], ExtendedKeyUsageOID.CLIENT_AUTH),
    ):
        key = ec.generate_private_key(ec.SECP256R1())
        common = hosts[0] if name == "server" else client.subject
        certificate = (
            _builder(common, authority.subject, key)
            .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .sign(authority_key, hashes.SHA256())
        )
        written += _write((folder / f"{name}.pem", folder / f"{name}.key"), certificate, key)
    return written


def _authority(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    name = _name("Hermosis development CA")
    return (
        _builder("Hermosis development CA", name, key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )


def _builder(common: str, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_name(common))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BEFORE)
        .not_valid_after(now + datetime.timedelta(days=VALID_DAYS))
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common[:64])])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _read_authority(certificate: Path, key: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    try:
        authority = x509.load_pem_x509_certificate(certificate.read_bytes())
        secret = serialization.load_pem_private_key(key.read_bytes(), None)
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{certificate.parent} has no whole authority ({error}); choose an empty folder") from None
    if not isinstance(secret, ec.EllipticCurvePrivateKey) or secret.public_key() != authority.public_key():
        raise InvalidRequest(f"{key} is not the key of {certificate}; choose an empty folder")
    return authority, secret


def _write(paths: tuple[Path, Path], certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> list[Path]:
    encoding = serialization.Encoding.PEM
    secret = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    for path, content, mode in ((paths[0], certificate.public_bytes(encoding), 0o644), (paths[1], secret, 0o600)):
        # Aside and then over the old one: a server that reads it meets a whole file.
        aside = path.with_name(f"{path.name}.new")
        with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode), "wb") as file:
            file.write(content)
        aside.replace(path)
    return list(paths)
