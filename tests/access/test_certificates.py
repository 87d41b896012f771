"""Certificates: who they are for, how a development CA makes them, and what happens while files change."""

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from tests.forking import WarmServer
from typer.testing import CliRunner, Result

from hermosis_client import Client
from hermosis_client.errors import PermissionDenied
from hermosis_server.access.certificates import CertificateFiles, admission_of
from hermosis_server.cli.root import app
from hermosis_server.errors import InvalidRequest, Unauthenticated
from hermosis_server.identity import Role


def certificates(folder: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["certificates", str(folder), *arguments])


def test_a_development_certificate_names_its_identity(tmp_path: Path) -> None:
    made = certificates(tmp_path, "--client", "ci", "--role", "worker", "--tenant", "acme")
    assert made.exit_code == 0, made.output
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{name}.{kind}" for name in ("ca", "server", "client") for kind in ("pem", "key")
    }
    for key in tmp_path.glob("*.key"):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
    admission = admission_of((tmp_path / "client.pem").read_bytes())
    identity = admission.identity
    assert (identity.subject, identity.role, identity.tenant) == ("ci", Role.WORKER, "acme")
    assert admission.expires_s is not None


def test_an_authority_that_is_there_is_used_again_and_half_of_one_is_not(tmp_path: Path) -> None:
    certificates(tmp_path)
    before = (tmp_path / "ca.pem").read_bytes()
    client = (tmp_path / "client.pem").read_bytes()
    assert certificates(tmp_path).exit_code == 0
    assert (tmp_path / "ca.pem").read_bytes() == before
    assert (tmp_path / "client.pem").read_bytes() != client
    (tmp_path / "ca.key").unlink()
    refused = certificates(tmp_path)
    assert refused.exit_code == 1
    assert "whole authority" in refused.output


@pytest.mark.parametrize("arguments", [("--role", "king"), ("--tenant", "../x"), ("--client", "a\nb")])
def test_words_that_will_not_do_are_refused(tmp_path: Path, arguments: tuple[str, str]) -> None:
    assert certificates(tmp_path, *arguments).exit_code == 1
    assert not list(tmp_path.iterdir())


def test_a_certificate_without_our_name_is_a_worker_by_its_common_name() -> None:
    made = trustme.CA().issue_cert("host.example", common_name="host-7")
    identity = admission_of(made.cert_chain_pems[0].bytes()).identity
    assert (identity.subject, identity.role, identity.tenant) == ("host-7", Role.WORKER, "default")


def test_a_certificate_without_any_name_is_nobody() -> None:
    made = trustme.CA().issue_cert("host.example")
    with pytest.raises(Unauthenticated, match="names nobody"):
        admission_of(made.cert_chain_pems[0].bytes())


def test_files_that_change_are_taken_when_they_fit_each_other(tmp_path: Path) -> None:
    ca = trustme.CA()
    certificate, key = tmp_path / "c.pem", tmp_path / "c.key"

    def write(*, pair: trustme.LeafCert, key_of: trustme.LeafCert) -> None:
        certificate.write_bytes(pair.cert_chain_pems[0].bytes())
        key.write_bytes(key_of.private_key_pem.bytes())

    first, second = ca.issue_cert("a.example"), ca.issue_cert("b.example")
    write(pair=first, key_of=first)
    files = CertificateFiles(certificate, key, None)
    assert files.changed() is None
    write(pair=second, key_of=first)  # half-way
    assert files.changed() is None
    write(pair=second, key_of=second)
    taken = files.changed()
    assert taken is not None
    assert taken.certificate == second.cert_chain_pems[0].bytes()
    assert files.changed() is None
    key.unlink()
    assert files.changed() is None


def test_a_server_does_not_start_with_files_that_do_not_fit(tmp_path: Path) -> None:
    ca = trustme.CA()
    certificate, key = tmp_path / "c.pem", tmp_path / "c.key"
    ca.issue_cert("a.example").cert_chain_pems[0].write_to_path(certificate)
    ca.issue_cert("a.example").private_key_pem.write_to_path(key)
    with pytest.raises(InvalidRequest, match="is not the key of"):
        CertificateFiles(certificate, key, None)
    with pytest.raises(InvalidRequest, match="cannot be read"):
        CertificateFiles(certificate, tmp_path / "none", None)
    key.write_text("spoilt")
    with pytest.raises(InvalidRequest, match="not what it should be"):
        CertificateFiles(certificate, key, None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    assert certificates(folder, "--client", "boss").exit_code == 0
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[WarmServer]:
    # Beyond loopback, as a server with TLS and certificates may be.
    flags = [
        "--host",
        "0.0.0.0",
        "--tls-certificate",
        str(folder / "server.pem"),
        "--tls-key",
        str(folder / "server.key"),
    ]
    with WarmServer(arguments=[*flags, "--tls-client-ca", str(folder / "ca.pem")]) as server:
        yield server


def client_of(server: WarmServer, folder: Path) -> Client:
    port = server.address.rpartition(":")[2]
    access = {"ca_file": folder / "ca.pem", "certificate": folder / "client.pem", "key": folder / "client.key"}
    return Client(f"localhost:{port}", timeout_s=10, **access)


def test_the_certificates_of_the_command_work_with_a_real_server(server: WarmServer, folder: Path) -> None:
    with client_of(server, folder) as client, client.create_session({"w": (2,)}, "sgd", session_id="theirs"):
        certificates(folder, "--client", "stranger", "--tenant", "acme")
        with client_of(server, folder) as stranger:
            assert list(stranger.sessions()) == []
        certificates(folder, "--client", "guest", "--role", "viewer")
        with client_of(server, folder) as guest:
            assert [info.session_id for info in guest.sessions()] == ["theirs"]
            with pytest.raises(PermissionDenied, match="guest is viewer"):
                guest.session("theirs").pause()


def test_health_is_asked_over_tls(server: WarmServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port = server.address.rpartition(":")[2]
    monkeypatch.setenv("HERMOSIS_CERTIFICATE", str(folder / "client.pem"))
    monkeypatch.setenv("HERMOSIS_KEY", str(folder / "client.key"))
    asked = CliRunner().invoke(app, ["health", "--address", f"localhost:{port}", "--ca", str(folder / "ca.pem")])
    assert asked.output.strip() == "SERVING"
    listed = CliRunner().invoke(
        app, ["sessions", "--ca", str(folder / "ca.pem"), "list", "--address", f"localhost:{port}", "--json"]
    )
    assert listed.output.strip() == "[]"
