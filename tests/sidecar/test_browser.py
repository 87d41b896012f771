"""The page in a real browser, driven by the DevTools protocol. Skipped where there is no Chromium."""

import itertools
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.sidecar.conftest import Sidecar, eventually, push
from websockets.sync.client import ClientConnection, connect

from hermosis_client import Client, Session


class Page:
    """One tab."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._numbers = itertools.count(1)
        self.complaints: list[str] = []
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **arguments: Any) -> Any:
        number = next(self._numbers)
        self._connection.send(json.dumps({"id": number, "method": method, "params": arguments}))
        while True:
            message = json.loads(self._connection.recv(timeout=20))
            if message.get("id") == number:
                return message["result"]
            if message.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.complaints.append(json.dumps(message["params"]))

    def ask(self, expression: str) -> Any:
        """The value of an expression."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a browser's DevTools."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium is installed")
    folder = tmp_path_factory.mktemp("browser")
    port_file = folder / "DevToolsActivePort"
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += ["--no-first-run", "--remote-debugging-port=0", f"--user-data-dir={folder}", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        lines = eventually(lambda: port_file.exists() and port_file.read_text().split(), "the browser")
        assert isinstance(lines, list)
        yield f"http://127.0.0.1:{lines[0]}"
    finally:
        process.terminate()
        process.wait(20)
        shutil.rmtree(Path(folder), ignore_errors=True)


@pytest.fixture
def page(browser: str, sidecar: Sidecar) -> Iterator[Page]:
    tab = sidecar.http.put(f"{browser}/json/new?about:blank").json()
    with connect(tab["webSocketDebuggerUrl"], max_size=None) as connection:
        yield Page(connection)
    sidecar.http.get(f"{browser}/json/close/{tab['id']}")


TITLE = "document.getElementById('session-title').textContent"
WORDS = "document.querySelector('.plot')?.getAttribute('aria-label') ?? ''"


def test_page_draws_history_then_live_steps_and_believes_nothing_from_the_network(
    sidecar: Sidecar, client: Client, page: Page
) -> None:
    name = "<img src=x onerror='window.broken = true'>"
    with client.create_session({"w": (2,)}, "adamw", display_name=name) as session:
        session.initialise({"w": np.ones(2, np.float32)})
        push(session, 0.75, 0.5)
        page.call("Page.navigate", url=f"{sidecar.address}/#{session.session_id}")
        eventually(lambda: "step 2: loss 0.5" in page.ask(WORDS), "the history")
        push(session, 0.25)
        eventually(lambda: "step 3: loss 0.25" in page.ask(WORDS), "the live step")
        eventually(lambda: page.ask(TITLE) == name, "the name as it was given")
        assert page.ask("window.broken") is None
        assert page.ask("document.querySelectorAll('canvas').length") == 3
        assert page.ask("document.getElementById('link').dataset.state") == "live"
        assert page.ask("document.querySelectorAll('#sessions [aria-current]').length") == 1
    eventually(lambda: page.ask("document.getElementById('session-status').textContent") == "CLOSED", "its end")
    assert page.complaints == []


def test_page_is_used_by_keyboard(sidecar: Sidecar, session: Session, page: Page) -> None:
    push(session, 4.0, 2.0)
    page.call("Page.navigate", url=f"{sidecar.address}/")
    eventually(lambda: page.ask("document.querySelectorAll('#sessions button').length") or None, "the list")
    label = json.dumps("two tensors")
    page.ask(f"[...document.querySelectorAll('#sessions button')].find(b => b.textContent.includes({label})).focus()")
    for kind in ("keyDown", "keyUp"):
        page.call("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r")
    eventually(lambda: page.ask(TITLE) == "two tensors", "the session that was chosen")
    eventually(lambda: "step 2" in page.ask(WORDS), "its history")
    page.ask("document.querySelector('.plot').focus()")
    legend = "document.querySelector('.u-legend .u-value').textContent"
    for expected in ("2", "1"):
        page.call("Input.dispatchKeyEvent", type="keyDown", key="ArrowLeft", code="ArrowLeft")
        eventually(lambda expected=expected: page.ask(legend) == expected, f"step {expected} in the legend")  # type: ignore[misc]


def test_page_fits_a_phone(sidecar: Sidecar, session: Session, page: Page) -> None:
    push(session, 4.0, 2.0)
    page.call("Emulation.setDeviceMetricsOverride", width=360, height=740, deviceScaleFactor=2, mobile=True)
    page.call("Page.navigate", url=f"{sidecar.address}/#{session.session_id}")
    eventually(lambda: "step 2" in page.ask(WORDS), "the history")
    assert page.ask("document.documentElement.scrollWidth") <= 360
