"""Chromium, and pages that may not complain. Skipped where there is no Chromium."""

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any
from urllib.parse import urlsplit

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="the extra e2e is not installed")

DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 844}
# What a browser says of an answer that is not 2xx; the page shows these to its reader.
REFUSED = re.compile(r"Failed to load resource")

expect = sync_api.expect
Page = Any


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium is on the PATH")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


OpenPage = Callable[..., Page]


@pytest.fixture
def open_page(browser: Any) -> Iterator[OpenPage]:
    """Opens a tab. At the end none may have complained, or have asked another host for anything."""
    complaints: list[str] = []
    hosts: set[str] = set()
    with ExitStack() as stack:

        def opened(address: str, size: dict[str, int] = DESKTOP, **options: Any) -> Page:
            context = browser.new_context(viewport=size, locale="en-GB", **options)
            stack.callback(context.close)
            page = context.new_page()
            page.on("console", lambda message: message.type in ("error", "warning") and complaints.append(message.text))
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on(
                "response",
                lambda response: response.status == 500 and complaints.append(f"{response.status} {response.url}"),
            )
            page.on("request", lambda request: hosts.add(urlsplit(request.url).hostname or request.url))
            page.goto(address)
            return page

        yield opened
    assert [text for text in complaints if not REFUSED.search(text)] == []
    assert hosts == {"127.0.0.1"}


def fits(page: Page) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


def does(page: Page, action: str, fill: Callable[[Any], object] = lambda _: None) -> None:
    """Presses an action's button, and confirms it in the question that comes."""
    page.get_by_role("group", name="Actions").get_by_role("button", name=action, exact=True).click()
    question = page.get_by_role("dialog")
    fill(question)
    question.get_by_role("button", name=action, exact=True).click()
    expect(question).to_have_count(0)
