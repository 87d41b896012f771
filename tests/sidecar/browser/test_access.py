"""The operators' window onto tokens and the audit log, in a real browser before a server that asks who one is."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.forking import WarmServer
from tests.sidecar.browser.conftest import DESKTOP, PHONE, OpenPage, Page, expect, fits
from tests.sidecar.conftest import Sidecar

from hermosis_server.access.tokens import TokenFile

CLIPBOARD = ["clipboard-read", "clipboard-write"]


@dataclass(frozen=True, slots=True, kw_only=True)
class House:
    """A server that asks for tokens, its sidecar, and two tokens."""

    sidecar: Sidecar
    operator: str
    viewer: str

    def ask(self, token: str, method: str, path: str, **body: Any) -> Any:
        return self.sidecar.http.request(method, path, headers={"authorization": f"Bearer {token}"}, **body)


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with WarmServer(arguments=["--require-token"]) as server, Sidecar(server.address) as sidecar:
        tokens = TokenFile(Path(server.data_folder))
        operator, viewer = (tokens.create(role, role=role, tenant="default") for role in ("operator", "viewer"))
        yield House(sidecar=sidecar, operator=operator, viewer=viewer)


def enter(page: Page, token: str) -> None:
    page.get_by_label("Token for this server").fill(token)
    page.keyboard.press("Enter")
    expect(page.locator("#link")).to_have_text("Connected")


def row(page: Page, section: str, name: str) -> Any:
    return page.get_by_role("region", name=section).locator("tr", has=page.get_by_text(name, exact=True))


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_a_token_is_made_shown_once_and_revoked_by_keyboard(
    house: House, open_page: OpenPage, size: dict[str, int]
) -> None:
    name = f"rig-{size['width']}"
    page = open_page(f"{house.sidecar.address}/#/access", size, permissions=CLIPBOARD)
    enter(page, house.operator)
    make = page.get_by_role("button", name="New token")
    make.press("Enter")
    question = page.get_by_role("dialog", name="New token")
    field = question.get_by_label("Name", exact=True)
    expect(field).to_be_focused()
    page.keyboard.type("two words")
    page.keyboard.press("Enter")
    expect(field).to_have_accessible_description(re.compile("name is 'two words'"))
    expect(field).to_be_focused()
    field.fill(name)
    question.get_by_label("Days").fill("soon")
    page.keyboard.press("Enter")
    expect(question.get_by_label("Days")).to_be_focused()
    question.get_by_label("Days").fill("0.5")
    question.get_by_label("Role").select_option("WORKER")
    question.get_by_label("Sessions").fill("run-*")
    question.get_by_role("button", name="Make the token").press("Enter")

    shown = page.get_by_role("dialog", name=f"Token: {name}")
    secret = shown.get_by_label("Secret").input_value()
    assert house.ask(secret, "GET", "/v1/capabilities").status_code == 200
    page.keyboard.press("Escape")
    expect(shown).to_be_visible()
    shown.get_by_role("button", name="Copy").press("Enter")
    expect(shown).to_contain_text("Token copied")
    assert page.evaluate("navigator.clipboard.readText()") == secret
    assert fits(page)
    shown.get_by_role("button", name="I have it").press("Enter")
    expect(shown).to_have_count(0)
    kept = page.evaluate("JSON.stringify([sessionStorage, localStorage, location.href])")
    assert secret not in page.content() + kept

    made = row(page, "Tokens", name)
    for text in ("WORKER", "run-*", "until "):
        expect(made).to_contain_text(text)
    assert fits(page)
    revoke, question = (
        made.get_by_role("button", name=f"Revoke {name}"),
        page.get_by_role("dialog", name=f"Revoke: {name}"),
    )
    revoke.press("Enter")
    expect(question).to_be_visible()
    page.keyboard.press("Escape")
    expect(question).to_have_count(0)
    expect(revoke).to_be_focused()
    assert house.ask(secret, "GET", "/v1/capabilities").status_code == 200
    revoke.press("Enter")
    question.get_by_role("button", name="Revoke").press("Enter")
    expect(made).to_contain_text("revoked ")
    expect(made.get_by_role("button")).to_have_count(0)
    assert house.ask(secret, "GET", "/v1/capabilities").status_code == 401
    log = page.get_by_role("region", name="Audit log").locator("tbody tr")
    for place, method in enumerate(("RevokeToken", "CreateToken")):
        for text in ("operator", method, name, "OK"):
            expect(log.nth(place)).to_contain_text(text)
    expect(page.get_by_role("status").last).to_contain_text(f"Token {name} is revoked")


def test_older_entries_of_the_audit_log_are_there_when_asked_for(house: House, open_page: OpenPage) -> None:
    for _ in range(55):
        assert house.ask(house.operator, "DELETE", "/v1/tokens/never-was").status_code == 422
    page = open_page(f"{house.sidecar.address}/#/access")
    enter(page, house.operator)
    entries = page.get_by_role("region", name="Audit log").locator("tbody tr")
    expect(entries).to_have_count(50)
    expect(entries.first).to_contain_text("InvalidRequest")
    more = page.get_by_role("button", name="More")
    more.press("Enter")
    held = len(house.ask(house.operator, "GET", "/v1/audit", params={"limit": 100}).json()["entries"])
    assert 55 <= held < 100
    expect(entries).to_have_count(held)
    expect(more).to_have_count(0)


def test_who_is_no_operator_is_told_so_and_shown_nothing(house: House, open_page: OpenPage) -> None:
    page = open_page(f"{house.sidecar.address}/#/access")
    enter(page, house.viewer)
    main = page.get_by_role("main")
    expect(main.get_by_role("alert")).to_contain_text("for operators: viewer is viewer and may not call List")
    expect(main.get_by_role("table")).to_have_count(0)
    expect(page.get_by_role("button", name="New token")).to_have_count(0)


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_a_server_that_asks_nobody_says_how_to_begin(
    sidecar: Sidecar, open_page: OpenPage, size: dict[str, int]
) -> None:
    page = open_page(f"{sidecar.address}/", size)
    page.get_by_role("link", name="Access").press("Enter")
    tokens = page.get_by_role("region", name="Tokens")
    expect(tokens).to_contain_text("asks nobody who they are")
    expect(tokens).to_contain_text("hermosis token create")
    expect(page.get_by_role("button", name="New token")).to_have_count(0)
    expect(page.get_by_role("region", name="Audit log")).to_be_visible()
    assert fits(page)
