"""Tokens and the audit log by REST: for operators, of their own tenant, with a secret that is shown once."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.forking import WarmServer
from tests.sidecar.conftest import Sidecar

from hermosis_server.access.tokens import TokenFile


class House:
    """A server that asks for tokens, its sidecar, and a token for everybody."""

    def __init__(self, server: WarmServer, sidecar: Sidecar) -> None:
        tokens = TokenFile(Path(server.data_folder))
        self._http = sidecar.http
        self._tokens = {
            name: tokens.create(name, role=role, tenant=tenant)
            for name, role, tenant in (
                ("operator", "operator", "default"),
                ("viewer", "viewer", "default"),
                ("stranger", "operator", "acme"),
            )
        }

    def ask(self, who: str, method: str, path: str, token: str = "", **body: Any) -> Any:
        headers = {"authorization": f"Bearer {token or self._tokens[who]}"}
        return self._http.request(method, path, headers=headers, **body)


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with WarmServer(arguments=["--require-token"]) as server, Sidecar(server.address) as sidecar:
        yield House(server, sidecar)


def test_a_token_made_by_rest_lets_in_until_it_is_revoked(house: House) -> None:
    answer = house.ask("operator", "POST", "/v1/tokens", json={"name": "rig", "role": "WORKER", "lifetime_s": 60})
    assert answer.status_code == 201
    assert answer.headers["cache-control"] == "no-store"
    made = answer.json()
    assert (made["role"], made["tenant"], made["sessions"], made["revoke_time"]) == ("WORKER", "default", "*", None)
    assert made["expire_time"] > made["create_time"]
    assert house.ask("", "GET", "/v1/capabilities", token=made["secret"]).status_code == 200
    assert house.ask("operator", "DELETE", "/v1/tokens/rig").json()["revoke_time"] is not None
    assert house.ask("", "GET", "/v1/capabilities", token=made["secret"]).status_code == 401
    again = house.ask("operator", "DELETE", "/v1/tokens/rig")
    assert (again.status_code, again.json()["field"]) == (422, "name")


def test_the_list_shows_ones_own_tenant_and_no_secret(house: House) -> None:
    answer = house.ask("operator", "GET", "/v1/tokens")
    shown = {token["name"]: token for token in answer.json()["tokens"]}
    assert {"operator", "viewer"} <= set(shown)
    assert "stranger" not in shown
    assert shown["viewer"]["role"] == "VIEWER"
    assert "hmt_" not in answer.text
    assert [token["name"] for token in house.ask("stranger", "GET", "/v1/tokens").json()["tokens"]] == ["stranger"]


def test_the_audit_tells_who_did_what(house: House) -> None:
    house.ask("operator", "POST", "/v1/tokens", json={"name": "noted", "role": "VIEWER"})
    assert house.ask("operator", "POST", "/v1/sessions/never-was/pause").status_code == 404
    newest, older = house.ask("operator", "GET", "/v1/audit", params={"limit": 2}).json()["entries"]
    # The sidecar looks for the session before it pauses it, so no management call was made.
    assert (newest["subject"], newest["method"], newest["token"]) == ("operator", "CreateToken", "noted")
    assert (newest["role"], newest["outcome"], newest["session_id"]) == ("OPERATOR", "OK", "")
    assert newest["time"] >= older["time"]
    assert house.ask("stranger", "GET", "/v1/audit").json() == {"entries": []}


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v1/tokens"), ("POST", "/v1/tokens"), ("DELETE", "/v1/tokens/operator"), ("GET", "/v1/audit")],
)
def test_it_is_for_operators_only(house: House, method: str, path: str) -> None:
    body = {"json": {"name": "mine", "role": "OPERATOR"}} if method == "POST" else {}
    assert house.ask("viewer", method, path, **body).status_code == 403
    assert house.ask("", method, path, token="hmt_unknown", **body).status_code == 401


def test_a_server_that_asks_nobody_makes_no_token(sidecar: Sidecar) -> None:
    answer = sidecar.http.post("/v1/tokens", json={"name": "first", "role": "OPERATOR"})
    assert (answer.status_code, answer.json()["reason"]) == (403, "PermissionDenied")
    assert sidecar.http.get("/v1/tokens").json() == {"tokens": []}


def test_a_page_of_another_site_makes_no_token(house: House) -> None:
    headers = {"sec-fetch-site": "cross-site", "authorization": f"Bearer {house._tokens['operator']}"}
    answer = house._http.post("/v1/tokens", json={"name": "foreign", "role": "VIEWER"}, headers=headers)
    assert answer.status_code == 403
    assert "foreign" not in house.ask("operator", "GET", "/v1/tokens").text
