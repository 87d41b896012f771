"""Sessions in a real browser, with a real sidecar and real steps behind them."""

import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.forking import WarmServer
from tests.sidecar.browser.conftest import DESKTOP, PHONE, OpenPage, Page, does, expect, fits
from tests.sidecar.conftest import Sidecar, push

from hermosis_client import Client, Session, SessionStatus


def loss(page: Page) -> Any:
    return page.get_by_role("group", name=re.compile("^Loss chart"))


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_a_session_is_created_watched_live_edited_and_paused(
    sidecar: Sidecar, client: Client, open_page: OpenPage, size: dict[str, int]
) -> None:
    name = f"made-at-{size['width']}"
    page = open_page(f"{sidecar.address}/#/create", size)
    page.get_by_label("Recipe").select_option("sgd")
    page.get_by_label("momentum", exact=True).fill("0.5")
    expect(page.locator("#preview-words")).to_contain_text("Every step keeps 0.5 of the momentum")
    page.get_by_label("Id", exact=True).fill(name)
    page.get_by_label("Tensor", exact=True).first.fill("w")
    page.get_by_label("Shape", exact=True).first.fill("2")
    page.get_by_role("button", name="Take tensor 2 away").click()
    assert fits(page)

    page.get_by_label("lr", exact=True).fill("-1")
    page.get_by_role("button", name="Make the session").click()
    rate = page.get_by_label("lr", exact=True)
    expect(rate).to_have_attribute("aria-invalid", "true")
    expect(rate).to_be_focused()
    expect(rate).to_have_accessible_description(re.compile("lr of recipe sgd is -1"))
    rate.fill("0.1")
    page.get_by_role("button", name="Make the session").click()

    expect(page.get_by_role("heading", name=name)).to_be_visible()
    expect(page.locator("#session-note")).to_have_text("Waiting for a worker to upload the initial parameters.")
    session = client.session(name)
    assert session.info().layout.tensors[0].shape == (2,)
    session.initialise({"w": np.ones(2, np.float32)})
    push(session, 0.75, 0.5)
    expect(loss(page)).to_have_accessible_name(re.compile("at step 2: loss 0.5,"))
    push(session, 0.25)
    expect(loss(page)).to_have_accessible_name(re.compile("at step 3: loss 0.25,"))

    does(page, "Learning rate", lambda question: question.get_by_label("lr_scale").fill("0.5"))
    assert session.info().lr_scale == 0.5
    does(page, "Thermal profile", lambda question: question.get_by_label("Retention of momentum").fill("0.8"))
    push(session, 0.125)
    reading = session.telemetry()
    assert reading is not None
    assert reading.energies.retention == pytest.approx(0.8)
    does(page, "Pause")
    assert session.info().status is SessionStatus.PAUSED
    expect(page.locator("#session-note")).to_have_text("Takes no gradients until it is resumed.")
    events = page.get_by_role("region", name="Events")
    for kind in ("created", "ready", "edited", "paused"):
        expect(events.get_by_text(kind, exact=True).first).to_be_visible(timeout=20_000)
    does(page, "Resume")
    assert session.info().status is SessionStatus.READY
    assert fits(page)
    does(page, "Close")
    expect(page.locator("#session-note")).to_contain_text("Closed")


def test_an_edit_that_the_server_refuses_says_so_and_changes_nothing(
    sidecar: Sidecar, session: Session, open_page: OpenPage
) -> None:
    page = open_page(f"{sidecar.address}/#/session/{session.session_id}")
    page.get_by_role("button", name="Learning rate").click()
    question = page.get_by_role("dialog")
    question.get_by_label("lr_scale").fill("-2")
    question.get_by_role("button", name="Learning rate").click()
    expect(question.get_by_role("alert")).to_contain_text("greater than 0")
    page.keyboard.press("Escape")
    expect(question).to_have_count(0)
    expect(page.get_by_role("button", name="Learning rate")).to_be_focused()
    assert session.info().lr_scale == 1


def test_an_edit_of_somebody_else_meanwhile_is_not_overwritten(
    sidecar: Sidecar, session: Session, open_page: OpenPage
) -> None:
    page = open_page(f"{sidecar.address}/#/session/{session.session_id}")
    page.get_by_role("button", name="Learning rate").click()
    question = page.get_by_role("dialog")
    question.get_by_label("lr_scale").fill("0.1")
    session.update(lr_scale=3)
    question.get_by_role("button", name="Learning rate").click()
    expect(question.get_by_role("alert")).not_to_be_empty()
    assert session.info().lr_scale == 3


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_sessions_are_found_and_compared_and_the_link_shows_the_same(
    sidecar: Sidecar, client: Client, open_page: OpenPage, size: dict[str, int]
) -> None:
    with ExitStack() as stack:
        for which in ("one", "other"):
            session = stack.enter_context(
                client.create_session({"w": (2,)}, "adamw", display_name=f"compared {which}", labels={"set": "pair"})
            )
            session.initialise({"w": np.ones(2, np.float32)})
            push(session, 4.0, 2.0)
        page = open_page(f"{sidecar.address}/", size)
        page.get_by_label("Search").fill("compared")
        rows = page.locator("table.fleet tbody tr")
        expect(rows).to_have_count(2)
        expect(page.get_by_role("region", name="Device memory")).to_contain_text("compared one")
        assert fits(page)
        for which in ("one", "other"):
            page.get_by_label(f"Compare compared {which}").check()
        page.get_by_role("link", name="Compare 2").click()
        page.get_by_label("Quantity").select_option("gradient_norm")
        chart = page.get_by_role(
            "group", name=re.compile("^gradient chart, at step 2: compared one .*, compared other ")
        )
        expect(chart).to_be_visible()
        assert fits(page)
        other = open_page(page.url, size)
        expect(other.get_by_role("group", name=re.compile("^gradient chart, at step 2"))).to_be_visible()


def test_a_page_finds_back_when_the_server_was_restarted(tmp_path: Path, open_page: OpenPage) -> None:
    with ExitStack() as stack:
        first = stack.enter_context(WarmServer(data_folder=tmp_path))
        sidecar = stack.enter_context(Sidecar(first.address, live_interval_s="0", retry_s="0.1"))
        with Client(first.address) as client:
            session = client.create_session({"w": (2,)}, "adamw", session_id="run")
            session.initialise({"w": np.ones(2, np.float32)})
            push(session, 4.0, 2.0)
        page = open_page(f"{sidecar.address}/#/session/run")
        expect(loss(page)).to_have_accessible_name(re.compile("at step 2"))
        first.close()
        expect(page.locator("#link")).to_have_attribute("data-state", "lost")
        port = first.address.rpartition(":")[2]
        second = stack.enter_context(WarmServer(data_folder=tmp_path, arguments=["--port", port]))
        expect(page.locator("#link")).to_have_text("Connected", timeout=20_000)
        with Client(second.address) as client:
            push(client.session("run"), 1.0)
        expect(loss(page)).to_have_accessible_name(re.compile("at step 3: loss 1,"))
        # The recorder looks at the sessions every few seconds.
        expect(page.get_by_role("region", name="Events")).to_contain_text("server restarted", timeout=20_000)


def test_page_is_used_by_keyboard_and_told_to_who_does_not_see(
    sidecar: Sidecar, session: Session, open_page: OpenPage
) -> None:
    push(session, 4.0, 2.0)
    page = open_page(f"{sidecar.address}/#/?search={session.session_id}")
    page.get_by_role("link", name="two tensors", exact=True).focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="two tensors")).to_be_visible()
    expect(loss(page)).to_have_accessible_name(re.compile("at step 2"))
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    loss(page).focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Shift+Tab")
    assert page.evaluate(outline) == "solid"
    step = page.locator(".u-legend .u-value").first
    for expected in ("2", "1"):
        page.keyboard.press("ArrowLeft")
        expect(step).to_have_text(expected)

    figure = page.locator("figure", has=loss(page))
    figure.get_by_text("As a table").click()
    expect(figure.get_by_role("row", name="2 2")).to_be_visible()
    page.get_by_role("button", name="Pause").press("Enter")
    page.get_by_role("dialog").get_by_role("button", name="Pause").press("Enter")
    expect(page.get_by_role("status").last).to_contain_text("PAUSED")
    for landmark in ("banner", "navigation", "main"):
        expect(page.get_by_role(landmark)).to_have_count(1)


def test_page_believes_nothing_from_the_network(sidecar: Sidecar, client: Client, open_page: OpenPage) -> None:
    name = "<img src=x onerror='window.broken = true'>"
    with client.create_session({"w": (2,)}, "adamw", display_name=name, labels={"trap": "set"}) as session:
        session.initialise({"w": np.ones(2, np.float32)})
        push(session, 1.0)
        page = open_page(f"{sidecar.address}/#/session/{session.session_id}")
        expect(page.locator("#session-title")).to_have_text(name)
        page.goto(f"{sidecar.address}/#/compare/{session.session_id}")
        expect(page.get_by_role("heading", name="Compare 1")).to_be_visible()
        expect(page.locator(".u-legend")).to_contain_text(name)
        page.goto(f"{sidecar.address}/#/?search=trap")
        expect(page.get_by_role("link", name=name).first).to_be_visible()
        assert page.evaluate("window.broken") is None


def test_ten_thousand_readings_make_no_larger_page_than_ten(
    sidecar: Sidecar, session: Session, open_page: OpenPage
) -> None:
    push(session, *[8.0] * 10)
    address = f"{sidecar.address}/#/session/{session.session_id}"
    page = open_page(address)
    expect(loss(page)).to_have_accessible_name(re.compile("at step 10"))
    events = page.get_by_role("region", name="Events")
    expect(events).to_contain_text("ready", timeout=20_000)  # all that comes beside the readings is there
    nodes = "document.querySelectorAll('*').length"
    few = page.evaluate(nodes)

    reading = sidecar.http.get(f"/v1/sessions/{session.session_id}/telemetry").json()["reading"]
    many = [{**reading, "step": step} for step in range(1, 10_001)]
    page.route("**/telemetry/history*", lambda route: route.fulfill(json={"readings": many, "thinned": False}))
    page.reload()
    expect(loss(page)).to_have_accessible_name(re.compile("at step 10,000"), timeout=20_000)
    expect(events).to_contain_text("ready", timeout=20_000)
    assert page.evaluate(nodes) <= few


def test_page_is_dark_where_the_reader_wants_it_dark(sidecar: Sidecar, open_page: OpenPage) -> None:
    shades = []
    for scheme in ("light", "dark"):
        page = open_page(f"{sidecar.address}/", color_scheme=scheme)
        shade = page.evaluate("getComputedStyle(document.body).backgroundColor")
        shades.append(sum(map(int, re.findall(r"\d+", shade))))
    light, dark = shades
    assert dark < 200 < 600 < light


def test_page_asks_for_a_token_and_brings_it_from_then_on(sidecar: Sidecar, open_page: OpenPage) -> None:
    page = open_page("about:blank")
    brought = []

    def answer(route: Any) -> None:
        brought.append(route.request.headers.get("authorization"))
        refusal = {"detail": "who are you?", "reason": "Unauthenticated"}
        if brought[-1] == "Bearer hmt_right":
            route.continue_()
        else:
            route.fulfill(status=401, json=refusal)

    page.route("**/v1/**", answer)
    page.goto(f"{sidecar.address}/")
    expect(page.get_by_text("who are you?")).to_be_visible()
    page.get_by_label("Token for this server").fill("hmt_right")
    page.get_by_role("button", name="Enter").click()
    expect(page.locator("#link")).to_have_text("Connected")
    assert brought[0] is None
    assert "hmt_right" not in page.url
