"""Pictures of the page for docs/dashboard.md: ``python -m tests.sidecar.screenshots``.

A real server and sidecar, real networks that learn handwritten digits, and Chromium. Needs the extras dev and e2e.
"""

import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright
from tests.sidecar.conftest import Sidecar, eventually

from hermosis.v1 import dynamics_pb2
from hermosis_client import Client, Consistency, Recipe, Session
from hermosis_client.local_server import LocalServer
from hermosis_client.torch_optimizer import RemoteOptimizer
from hermosis_server.access.tokens import TokenFile
from hermosis_server.demo import digits

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "img"
LARGEST_BYTES = 200_000
COLORS = 200
STEPS = 600  # of each session before the pictures are taken; they go on meanwhile
PACE_S = 0.02  # between two steps of a worker, so that a curve has a shape to show
DESKTOP = {"width": 1280, "height": 860}
PHONE = {"width": 390, "height": 844}


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """A session and who contributes to it: a pause in seconds before each gradient of each worker."""

    session_id: str
    display_name: str
    optimizer: Recipe
    pauses_s: tuple[float, ...] = (PACE_S,)
    consistency: Consistency = field(default_factory=Consistency)


TRAININGS = (
    Training(
        session_id="digits-adamw",
        display_name="digits, AdamW, two of three workers",
        optimizer=Recipe("adamw", lr=0.01),
        pauses_s=(PACE_S, 2 * PACE_S, 10 * PACE_S),
        consistency=Consistency(mode="quorum", workers=3, quorum=2, deadline_s=5, late="carry", lease_s=30),
    ),
    Training(
        session_id="digits-hermosis", display_name="digits, Hermosis", optimizer=Recipe("hermosis", lr=0.003, eps=1e-3)
    ),
    Training(
        session_id="digits-async",
        display_name="digits, SGD, four workers at their own pace",
        optimizer=Recipe("sgd", lr=0.03, momentum=0.9),
        pauses_s=(PACE_S, 2 * PACE_S, 4 * PACE_S, 10 * PACE_S),
        consistency=Consistency(mode="async", workers=4),
    ),
    Training(
        session_id="digits-undamped",
        display_name="digits, without friction",
        optimizer=Recipe("sgd", lr=0.003, momentum=0.9),
    ),
)


def work(address: str, training: Training, number: int, stop: threading.Event) -> None:
    """One worker of one session, until it is told to stop."""
    images, _ = digits.load()
    model = digits.network()
    workers = len(training.pauses_s)
    with RemoteOptimizer(
        model.named_parameters(), session=training.session_id, address=address, worker_id=f"worker-{number}"
    ) as optimizer:
        for minibatch in digits.minibatches(len(images), epochs=10_000):
            if stop.wait(training.pauses_s[number]):
                return
            optimizer.zero_grad()
            share = minibatch[number::workers]
            loss = digits.loss_of(model, images, share)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step(loss=loss.detach(), sample_count=len(share))


def begin(client: Client, training: Training) -> Session:
    model = digits.network()
    session = client.create_session(
        dict(model.named_parameters()),
        training.optimizer,
        session_id=training.session_id,
        display_name=training.display_name,
        consistency=training.consistency,
        labels={"data": "digits"},
    )
    session.initialise(digits.flat_parameters(model).numpy())
    return session


def save(page: Any, name: str, *, whole: bool = False) -> None:
    """A picture in few colours, which charts do not miss."""
    path = FOLDER / f"{name}.png"
    page.screenshot(path=path, full_page=whole)
    Image.open(path).convert("RGB").quantize(COLORS, dither=Image.Dither.NONE).save(path, optimize=True)
    size = path.stat().st_size
    print(f"{path.name} {size / 1000:.0f} kB")
    if size > LARGEST_BYTES:
        sys.exit(f"{path.name} has {size} bytes, more than {LARGEST_BYTES}; show less in it")


def show(browser: Any, sidecar: Sidecar) -> None:
    """Takes all pictures."""

    def opened(place: str, size: dict[str, int], scheme: str = "light") -> Any:
        page = browser.new_page(viewport=size, color_scheme=scheme, locale="en-GB")
        page.goto(f"{sidecar.address}/#{place}")
        return page

    chart = re.compile("^(Loss|loss) chart, at step ")
    for name, place, size, scheme in (
        ("dashboard-session", "/session/digits-async", {"width": 1280, "height": 1500}, "light"),
        ("dashboard-anomaly", "/session/digits-undamped", DESKTOP, "light"),
        (
            "dashboard-compare",
            "/compare/digits-adamw,digits-hermosis,digits-async",
            {"width": 1280, "height": 640},
            "dark",
        ),
        ("dashboard-phone", "/session/digits-hermosis", PHONE, "light"),
    ):
        page = opened(place, size, scheme)
        page.get_by_role("group", name=chart).wait_for()
        if name == "dashboard-anomaly":
            page.get_by_text("What looks wrong").wait_for()
        page.wait_for_timeout(
            1500
        )  # Until all that is asked for has come; a picture a moment earlier would do as well.
        save(page, name)
        page.close()

    page = opened("/", DESKTOP)
    page.get_by_role("link", name="digits, Hermosis", exact=True).wait_for()
    page.wait_for_timeout(2500)
    save(page, "dashboard-fleet")
    page.close()

    page = opened("/session/digits-adamw", {"width": 1280, "height": 620})
    page.get_by_role("region", name="Rounds").scroll_into_view_if_needed()
    page.wait_for_timeout(1500)
    page.evaluate("document.getElementById('rounds-title').scrollIntoView()")
    save(page, "dashboard-rounds")
    page.close()

    page = opened("/create", DESKTOP)
    page.get_by_label("Recipe").select_option("nesterov_ode")
    page.get_by_label("lr", exact=True).fill("-0.01")
    page.get_by_role("button", name="Make the session").click()
    page.locator("[aria-invalid=true]").wait_for()
    page.get_by_label("Recipe").scroll_into_view_if_needed()
    page.wait_for_timeout(500)
    save(page, "dashboard-create")
    page.close()


def show_access(browser: Any) -> None:
    """Tokens and the audit log, of a server that asks who one is."""
    with LocalServer(arguments=["--require-token"]) as server, Sidecar(server.address) as sidecar:
        operator = TokenFile(Path(server.data_folder)).create("ann", role="operator", tenant="default")
        with Client(server.address, token=operator) as client:
            for number in (1, 2):
                client.create_token(f"rig-{number}", "worker", sessions="run-*", lifetime_s=30 * 86400)
            client.create_token("monitor", "viewer")
            with client.create_session({"w": (2,)}, "adamw", session_id="run-1") as session:
                session.initialise({"w": [1.0, 2.0]})
                session.update(lr_scale=0.5)
            client.revoke_token("rig-2")
            page = browser.new_page(viewport=DESKTOP, color_scheme="light", locale="en-GB")
            page.goto(f"{sidecar.address}/#/access")
            page.get_by_label("Token for this server").fill(operator)
            page.keyboard.press("Enter")
            page.get_by_text("CreateSession").wait_for()
            save(page, "dashboard-access")
            page.close()


def main() -> None:
    chromium = shutil.which("chromium") or sys.exit("no Chromium is on the PATH")
    FOLDER.mkdir(exist_ok=True)
    stop = threading.Event()
    threads: list[threading.Thread] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalServer(data_folder=folder) as server,
        Sidecar(server.address) as sidecar,
        Client(server.address) as client,
        sync_playwright() as playwright,
    ):
        try:
            sessions = [begin(client, training) for training in TRAININGS]
            for training in TRAININGS:
                for number in range(len(training.pauses_s)):
                    threads.append(threading.Thread(target=work, args=(server.address, training, number, stop)))
                    threads[-1].start()
            reach = at_step(client)
            reach("digits-async", STEPS // 3)
            sessions[2].update(lr_scale=0.5)
            sessions[3].update(thermal_profile=dynamics_pb2.ThermalProfile(constant=dynamics_pb2.ConstantProfile()))
            reach("digits-async", STEPS // 2)
            sessions[2].snapshot()
            for training in TRAININGS:
                reach(training.session_id, STEPS)
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
            show(browser, sidecar)
            show_access(browser)
            browser.close()
        finally:
            stop.set()
            for thread in threads:
                thread.join()


def at_step(client: Client) -> Callable[[str, int], None]:
    def reach(session_id: str, step: int) -> None:
        def there() -> bool:
            time.sleep(0.2)
            return client.session(session_id).info().step >= step

        eventually(there, f"step {step} of {session_id}", limit_s=300)

    return reach


if __name__ == "__main__":
    main()
