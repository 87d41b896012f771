"""JSON Web Tokens of an identity provider: a real provider over HTTP, a real server, and every way to forge one."""

import asyncio
import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from tests.forking import WarmServer

from hermosis_client import Client
from hermosis_client.errors import PermissionDenied, Unauthenticated
from hermosis_server import errors
from hermosis_server.access.issuer import LEEWAY_S, REFRESH_S, Issuer, checked_url
from hermosis_server.identity import Role

AUDIENCE = "hermosis"
RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()
SPY = rsa.generate_private_key(65537, 2048)


def published(key_id: str, key: Any, algorithm: str) -> dict[str, Any]:
    maker = jwt.get_algorithm_by_name(algorithm)
    return {**maker.to_jwk(key.public_key(), as_dict=True), "kid": key_id, "alg": algorithm, "use": "sig"}


KEYS = [published("rsa", RSA, "RS256"), published("ec", EC, "ES256"), published("ed", ED, "EdDSA")]


class Provider:
    """Publishes keys, and counts how often it is asked."""

    def __init__(self) -> None:
        provider = self
        self.keys = list(KEYS)
        self.asked: list[str] = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                provider.asked.append(self.path)
                documents = {
                    "/.well-known/openid-configuration": {"issuer": provider.url, "jwks_uri": f"{provider.url}/keys"},
                    "/keys": {"keys": provider.keys},
                }
                body = json.dumps(documents.get(self.path, {})).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    provider = Provider()
    yield provider
    provider.close()


@pytest.fixture(scope="module")
def server(provider: Provider) -> Iterator[WarmServer]:
    with WarmServer(arguments=["--oidc-issuer", provider.url, "--oidc-audience", AUDIENCE]) as server:
        yield server


def signed(provider: Provider, *, key: Any = RSA, algorithm: str = "RS256", key_id: str = "rsa", **changed: Any) -> str:
    claims = {
        "iss": provider.url,
        "aud": AUDIENCE,
        "sub": "ann",
        "exp": time.time() + 60,
        "hermosis_role": "operator",
    } | changed
    claims = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode(claims, key, algorithm, headers={"kid": key_id})


def client_of(server: WarmServer, token: str) -> Client:
    return Client(server.address, token=token, timeout_s=20)


@pytest.mark.parametrize(
    ("key", "algorithm", "key_id"), [(RSA, "RS256", "rsa"), (EC, "ES256", "ec"), (ED, "EdDSA", "ed")]
)
def test_a_token_of_the_provider_opens_the_server(
    provider: Provider, server: WarmServer, key: Any, algorithm: str, key_id: str
) -> None:
    with client_of(server, signed(provider, key=key, algorithm=algorithm, key_id=key_id)) as client:
        client.capabilities()


def test_claims_are_role_tenant_and_sessions(provider: Provider, server: WarmServer) -> None:
    with (
        client_of(server, signed(provider, hermosis_tenant="acme")) as ours,
        client_of(server, signed(provider)) as others,
        client_of(server, signed(provider, hermosis_tenant="acme", hermosis_role="worker")) as worker,
        client_of(server, signed(provider, hermosis_tenant="acme", hermosis_sessions="b-*")) as half,
        ours.create_session({"w": (1,)}, "sgd", session_id="a-1"),
    ):
        assert [info.session_id for info in ours.sessions()] == ["a-1"]
        assert list(others.sessions()) == list(half.sessions()) == []
        with pytest.raises(PermissionDenied, match="ann is worker"):
            worker.create_session({"w": (1,)}, "sgd")


def unsigned(provider: Provider) -> str:
    head, body, _ = signed(provider).split(".")
    none = base64.urlsafe_b64encode(json.dumps({"alg": "none", "kid": "rsa"}).encode()).rstrip(b"=").decode()
    assert head
    return f"{none}.{body}."


def hmac_with_the_public_key(provider: Provider) -> str:
    """The classic: whoever has the public key signs with it as if it were a shared secret."""
    import hashlib
    import hmac

    public = RSA.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    head = base64.urlsafe_b64encode(json.dumps({"alg": "HS256", "kid": "rsa"}).encode()).rstrip(b"=").decode()
    body = signed(provider).split(".")[1]
    mark = hmac.new(public, f"{head}.{body}".encode(), hashlib.sha256).digest()
    return f"{head}.{body}.{base64.urlsafe_b64encode(mark).rstrip(b'=').decode()}"


def changed_claims(provider: Provider) -> str:
    head, _, mark = signed(provider, hermosis_role="viewer").split(".")
    return f"{head}.{signed(provider).split('.')[1]}.{mark}"


FORGED: dict[str, tuple[Callable[[Provider], str], str]] = {
    "another key": (lambda p: signed(p, key=SPY), "ignature"),
    "unknown key id": (lambda p: signed(p, key=SPY, key_id="spy"), "none of the identity provider's"),
    "no key id": (lambda p: jwt.encode({"sub": "x"}, RSA, "RS256"), "none of the identity provider's"),
    "another provider": (lambda p: signed(p, iss="http://127.0.0.1:1"), "ssuer"),
    "another audience": (lambda p: signed(p, aud="billing"), "udience"),
    "no audience": (lambda p: signed(p, aud=None), "aud"),
    "no expiry": (lambda p: signed(p, exp=None), "exp"),
    "expired": (lambda p: signed(p, exp=time.time() - LEEWAY_S - 1), "xpired"),
    "not yet": (lambda p: signed(p, nbf=time.time() + 60), "not yet valid"),
    "no subject": (lambda p: signed(p, sub=None), "sub"),
    "no role": (lambda p: signed(p, hermosis_role=None), "hermosis_role"),
    "no such role": (lambda p: signed(p, hermosis_role="king"), "role"),
    "a role that is no text": (lambda p: signed(p, hermosis_role=["operator"]), "no text|not text"),
    "a tenant that is a path": (lambda p: signed(p, hermosis_tenant="../default"), "tenant"),
    "another algorithm of the same key": (lambda p: signed(p, algorithm="RS512"), "its key is for RS256"),
    "no signature": (unsigned, "signed with 'none'"),
    "a public key as a secret": (hmac_with_the_public_key, "signed with 'HS256'"),
    "changed claims": (changed_claims, "ignature"),
    "no token": (lambda p: "a.b.c", "does not hold"),
    "an empty word": (lambda p: "x", "does not hold"),
}


@pytest.mark.parametrize("forgery", FORGED)
def test_a_forged_token_opens_nothing(provider: Provider, server: WarmServer, forgery: str) -> None:
    make, told = FORGED[forgery]
    with client_of(server, make(provider)) as client, pytest.raises(Unauthenticated, match=told):
        client.capabilities()


def test_a_stream_ends_when_its_token_expires(provider: Provider, server: WarmServer) -> None:
    token = signed(provider, exp=int(time.time() - LEEWAY_S) + 3)
    with (
        client_of(server, token) as client,
        client.watch() as watch,
        pytest.raises(Unauthenticated, match="expired while the call went on"),
    ):
        next(watch)


class Steady:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_keys_are_asked_for_when_one_is_new_and_at_most_once_a_minute(provider: Provider) -> None:
    async def story() -> None:
        steady = Steady()
        issuer = Issuer(provider.url, AUDIENCE, steady=steady)
        provider.asked.clear()
        await asyncio.gather(*(issuer.admit(signed(provider, sub=f"s{number}")) for number in range(5)))
        assert provider.asked.count("/keys") == 1
        rotated = rsa.generate_private_key(65537, 2048)
        token = signed(provider, key=rotated, key_id="rotated")
        provider.keys.append(published("rotated", rotated, "RS256"))
        for _ in range(3):
            with pytest.raises(errors.Unauthenticated):
                await issuer.admit(token)
        assert provider.asked.count("/keys") == 1
        steady.now_s += REFRESH_S
        assert (await issuer.admit(token)).identity.role is Role.OPERATOR
        assert provider.asked.count("/keys") == 2
        provider.keys.pop()

    asyncio.run(story())


def test_a_token_is_verified_once_and_forgotten_when_it_expires(provider: Provider) -> None:
    async def story() -> None:
        now = [time.time()]
        issuer = Issuer(provider.url, AUDIENCE, clock=lambda: now[0])
        token = signed(provider, exp=time.time() - LEEWAY_S + 5)
        assert await issuer.admit(token) is await issuer.admit(token)
        now[0] += 6
        issuer._keys.clear()  # so that verifying again is seen
        issuer._asked_s = issuer._steady()
        with pytest.raises(errors.Recovering):
            await issuer.admit(token)

    asyncio.run(story())


@pytest.mark.parametrize("document", [{}, {"keys": 3}, [], {"keys": [{"kty": "oct", "k": "AAAA", "kid": "rsa"}]}])
def test_a_provider_that_talks_nonsense_or_publishes_secrets_lets_nobody_in(provider: Provider, document: Any) -> None:
    async def story() -> None:
        issuer = Issuer(provider.url, AUDIENCE, keys_url=f"{provider.url}/keys", fetch=lambda url: document)
        with pytest.raises(errors.Recovering) as refused:
            await issuer.admit(signed(provider))
        assert refused.value.retry_after_s

    asyncio.run(story())


@pytest.mark.parametrize("url", ["http://example.org", "ftp://example.org", "file:///etc/passwd", "", "https://"])
def test_keys_come_over_https_or_from_this_machine(url: str) -> None:
    with pytest.raises(errors.InvalidRequest):
        checked_url(url)


def test_a_discovery_document_may_not_lead_elsewhere(provider: Provider) -> None:
    def fetch(url: str) -> Any:
        assert url.endswith("openid-configuration"), f"{url} was asked"
        return {"issuer": provider.url, "jwks_uri": "http://evil.example/keys"}

    async def story() -> None:
        with pytest.raises(errors.Recovering):
            await Issuer(provider.url, AUDIENCE, fetch=fetch).admit(signed(provider))

    asyncio.run(story())
