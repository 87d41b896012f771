"""TLS and tokens between a real client and a real server, and what is said where they do not agree."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trustme
from tests.forking import WarmServer

from hermosis_client import Client
from hermosis_client.access import Access, is_loopback
from hermosis_client.errors import ConnectionFailed, TlsFailed, Unauthenticated
from hermosis_server.access.tokens import TokenFile


class Authority:
    """A CA, and files of what it signs."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._ca = trustme.CA()
        self.ca_file = folder / "ca.pem"
        self._ca.cert_pem.write_to_path(self.ca_file)

    def pair(self, *names: str, common_name: str | None = None) -> dict[str, str]:
        made = self._ca.issue_cert(*names, common_name=common_name)
        certificate, key = self._folder / f"{names[0]}.pem", self._folder / f"{names[0]}.key"
        certificate.write_bytes(b"".join(pem.bytes() for pem in made.cert_chain_pems))
        made.private_key_pem.write_to_path(key)
        return {"certificate": str(certificate), "key": str(key)}


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "ours")


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "foreign")


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    servers = []

    def start(*arguments: str) -> WarmServer:
        servers.append(WarmServer(data_folder=tmp_path_factory.mktemp("data"), arguments=arguments))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def tls_flags(authority: Authority) -> list[str]:
    pair = authority.pair("127.0.0.1")
    return ["--tls-certificate", pair["certificate"], "--tls-key", pair["key"]]


@pytest.fixture(scope="module")
def secret(start: Any, authority: Authority) -> Any:
    """Speaks TLS and asks for tokens."""
    return start(*tls_flags(authority), "--require-token")


@pytest.fixture(scope="module")
def mutual(start: Any, authority: Authority) -> Any:
    """Speaks TLS and asks for client certificates."""
    return start(*tls_flags(authority), "--tls-client-ca", str(authority.ca_file))


@pytest.fixture(scope="module")
def open_server(start: Any) -> Any:
    return start()


def token_of(server: WarmServer, name: str, role: str = "operator", **more: Any) -> str:
    return TokenFile(Path(server.data_folder)).create(name, role=role, **more)


def test_a_token_over_tls_opens_everything_that_a_client_does(secret: Any, authority: Authority) -> None:
    token = token_of(secret, "everything")
    weights = np.arange(2 << 20, dtype=np.float32)
    with (
        Client(secret.address, token=token, ca_file=authority.ca_file) as client,
        client.create_session({"w": weights.shape}, "sgd") as session,
    ):
        session.initialise({"w": weights})
        with client.watch([session.session_id]) as watch:
            result, parameters = session.exchange({"w": np.ones_like(weights)})
            assert result.step == 1
            assert next(watch).step == 1
        assert not np.array_equal(parameters["w"], weights)
        state = session.export_state()
        session.import_state(state)
        with session.worker() as worker:
            worker.pull()
            assert worker.path == "segment"  # Memory is still shared where both are on one machine.
    with (
        Client(secret.address, token=token, ca_file=authority.ca_file) as client,
        client.create_fleet(np.zeros((3, 4), np.float32), "sgd") as fleet,
    ):
        assert fleet.pull()[0].shape == (3, 4)


def test_environment_gives_what_is_not_said(secret: Any, authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERMOSIS_TOKEN", token_of(secret, "environment", "viewer"))
    monkeypatch.setenv("HERMOSIS_CA", str(authority.ca_file))
    with Client(secret.address) as client:
        client.capabilities()
    with Client(secret.address, token="") as client, pytest.raises(Unauthenticated):
        client.capabilities()


def test_a_wrong_token_is_final_at_once(secret: Any, authority: Authority) -> None:
    with (
        Client(secret.address, token="hmt_" + "x" * 43, ca_file=authority.ca_file) as client,
        pytest.raises(Unauthenticated, match="not known"),
    ):
        client.capabilities()


def certificate_client(server: WarmServer, authority: Authority, *names: str, **more: Any) -> Client:
    return Client(server.address, ca_file=authority.ca_file, **authority.pair(*names, **more))


def test_a_certificate_names_who_calls(mutual: Any, authority: Authority) -> None:
    from hermosis_client.errors import PermissionDenied

    with certificate_client(mutual, authority, "worker.example", common_name="worker-7") as client:
        assert list(client.sessions()) == []
        with pytest.raises(PermissionDenied, match="worker-7 is worker"):
            client.create_session({"w": (1,)}, "sgd")


def test_a_token_counts_before_the_certificate(mutual: Any, authority: Authority) -> None:
    pair = authority.pair("both.example", common_name="both")
    access = {"ca_file": authority.ca_file, **pair}
    with (
        Client(mutual.address, token="hmt_" + "y" * 43, **access) as client,
        pytest.raises(Unauthenticated, match="not known"),
    ):
        client.capabilities()


TROUBLES: dict[str, tuple[str, Callable[..., dict[str, Any]], str]] = {
    "clear text to TLS": ("secret", lambda ours, foreign: {}, "server speaks TLS, this client clear text"),
    "TLS to clear text": (
        "open_server",
        lambda ours, foreign: {"ca_file": ours.ca_file},
        "server speaks clear text, this client TLS",
    ),
    "a foreign server": ("secret", lambda ours, foreign: {"ca_file": foreign.ca_file}, "not one that .* vouches for"),
    "no client certificate": (
        "mutual",
        lambda ours, foreign: {"ca_file": ours.ca_file},
        "asks for a client certificate",
    ),
    "a foreign client certificate": (
        "mutual",
        lambda ours, foreign: {"ca_file": ours.ca_file, **foreign.pair("spy.example")},
        "does not take the certificate",
    ),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_ends_that_do_not_agree_about_tls_say_so_and_do_not_try_for_ever(
    request: pytest.FixtureRequest, authority: Authority, foreign: Authority, trouble: str
) -> None:
    name, access, told = TROUBLES[trouble]
    server = request.getfixturevalue(name)
    # With as much patience as a worker might have: it would hang here if this were taken for a server that is away.
    with (
        Client(server.address, timeout_s=30, **access(authority, foreign)) as client,
        pytest.raises(TlsFailed, match=told),
    ):
        client.capabilities()


def test_a_name_that_the_certificate_has_not_is_told(secret: Any, authority: Authority) -> None:
    address = secret.address.replace("127.0.0.1", "localhost")
    with Client(address, ca_file=authority.ca_file, timeout_s=60) as client, pytest.raises(TlsFailed, match="names"):
        client.capabilities()


def test_a_server_that_is_away_is_no_trouble_of_tls() -> None:
    with Client("127.0.0.1:1", timeout_s=0.3) as client, pytest.raises(ConnectionFailed) as failed:
        client.capabilities()
    assert not isinstance(failed.value, TlsFailed)


@pytest.mark.parametrize(
    ("address", "access", "told"),
    [
        ("10.0.0.1:50051", {"token": "hmt_x"}, "clear text"),
        ("server:50051", {"token": "hmt_x"}, "clear text"),
        ("127.0.0.1.example.org:1", {"token": "hmt_x"}, "clear text"),
        ("127.0.0.1:1", {"token": "hmt_x\nevil: 1"}, "characters"),
        ("127.0.0.1:1", {"token": "two words"}, "characters"),
        ("127.0.0.1:1", {"certificate": "c"}, "belong together"),
        ("127.0.0.1:1", {"certificate": "c", "key": "k"}, "ca_file"),
        ("127.0.0.1:1", {"ca_file": "/nowhere/ca.pem"}, "cannot be read"),
    ],
)
def test_what_makes_no_sense_or_gives_a_token_away_is_refused_before_anything_is_sent(
    address: str, access: dict[str, str], told: str
) -> None:
    with pytest.raises(ValueError, match=told) as refused:
        Client(address, **access)
    assert access.get("token", "never") not in str(refused.value)


def test_a_token_is_not_shown() -> None:
    assert "hmt_secret" not in repr(Access(token="hmt_secret"))


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.9.9.9:1", "localhost:1", "[::1]:1", "unix:/tmp/x"])
def test_loopback_is_known_for_certain(address: str) -> None:
    assert is_loopback(address)


@pytest.mark.parametrize("address", ["127.0.0.1.example.org:1", "localhost.example.org:1", "10.0.0.1:1", "[::]:1"])
def test_what_only_looks_like_loopback_is_not(address: str) -> None:
    assert not is_loopback(address)


def test_one_connection_serves_many_tokens(secret: Any, authority: Authority) -> None:
    ours, theirs = token_of(secret, "ours"), token_of(secret, "theirs", tenant="acme")
    with Client(secret.address, token=ours, ca_file=authority.ca_file) as client:
        with client.create_session({"w": (1,)}, "sgd", session_id="lent"):
            assert "lent" in {info.session_id for info in client.sessions()}
            with client.with_token(theirs) as other:
                assert list(other.sessions()) == []
            with client.with_token("") as nobody, pytest.raises(Unauthenticated):
                list(nobody.sessions())
        client.capabilities()  # Closing what was lent ended nothing.


def test_a_certificate_that_is_renewed_is_shown_to_whoever_connects_next(
    start: Any, authority: Authority, foreign: Authority
) -> None:
    flags = tls_flags(authority)
    server = start(*flags)
    with Client(server.address, ca_file=authority.ca_file) as before:
        before.capabilities()
        renewed = foreign.pair("127.0.0.1")
        for path, name in ((flags[1], "certificate"), (flags[3], "key")):
            Path(path).write_bytes(Path(renewed[name]).read_bytes())
        with Client(server.address, ca_file=foreign.ca_file) as after:
            after.capabilities()
        before.capabilities()  # The connection that is open goes on.
        Path(flags[3]).write_text("spoilt")
        with Client(server.address, ca_file=foreign.ca_file) as later:
            later.capabilities()
