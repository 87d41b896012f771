"""The page: everything from this house, nothing trusted that comes from the network."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.sidecar.conftest import Sidecar

import hermosis_sidecar

DASHBOARD = Path(hermosis_sidecar.__file__).parent / "dashboard"
OURS = [file for file in DASHBOARD.iterdir() if file.suffix in (".html", ".js", ".css", ".svg")]
SCRIPTS = [file for file in OURS if file.suffix == ".js"]


def test_everything_the_page_names_is_served_from_here(sidecar: Sidecar) -> None:
    page = sidecar.http.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert "unsafe" not in page.headers["content-security-policy"]
    named = set(re.findall(r'(?:src|href)="(static/[^"]+)"', page.text))
    assert len(named) >= 5
    for path in named:
        response = sidecar.http.get(f"/{path}")
        assert response.status_code == 200, path
        assert response.headers["x-content-type-options"] == "nosniff"
    for script in SCRIPTS:
        assert sidecar.http.get(f"/static/{script.name}").headers["content-type"].startswith("text/javascript")
        for imported in re.findall(r'from "\./([^"]+)"', script.read_text()):
            assert (DASHBOARD / imported).is_file()


@pytest.mark.parametrize("file", OURS, ids=lambda file: file.name)
def test_no_other_host_is_named(file: Path) -> None:
    text = file.read_text().replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.search(r"(https?:)?//[\w-]+\.\w", text)


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: file.name)
def test_text_of_the_network_never_becomes_markup(file: Path) -> None:
    text = file.read_text()
    for word in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "new Function",
        "javascript:",
    ):
        assert word not in text


def test_page_has_no_inline_script_or_style() -> None:
    """The content security policy would stop them."""
    text = (DASHBOARD / "index.html").read_text()
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", text)


def test_chart_library_is_the_pinned_one_with_its_licence() -> None:
    vendor = DASHBOARD / "vendor"
    assert "(v1.6.32)" in (vendor / "uPlot.iife.min.js").read_text()[:200]
    assert "MIT License" in (vendor / "LICENSE-uPlot").read_text()


@pytest.fixture
def run_script(tmp_path: Path) -> Any:
    """Runs a program that may import the page's modules, and gives what it prints as JSON."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    shutil.copytree(DASHBOARD, tmp_path / "page", ignore=shutil.ignore_patterns("vendor"))
    (tmp_path / "package.json").write_text('{"type": "module"}')

    def run(program: str) -> Any:
        (tmp_path / "program.js").write_text(program)
        done = subprocess.run(
            [node, str(tmp_path / "program.js")], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


SERIES = """
import { Series } from "./page/series.js";
const time = (second) => new Date(1e12 + second * 1000).toISOString();
const at = (step, second) => ({ step, time: time(second), energies: { loss: step * 10 } });
const series = new Series();
const steps = () => series.steps();
"""


def test_history_and_live_readings_merge_in_whatever_order_they_come(run_script: Any) -> None:
    told = run_script(
        SERIES
        + """
series.merge([at(5, 5), at(6, 6)]);                       // live, before the history
series.merge([at(1, 1), at(2, 2), at(4, 4), at(5, 5)]);   // the history
series.merge([at(8, 8)]);
console.log(JSON.stringify([steps(), series.column("loss"), series.rate()]));
"""
    )
    assert told == [[1, 2, 4, 5, 6, 8], [10, 20, 40, 50, 60, 80], 1]


def test_session_that_is_set_back_forgets_what_followed(run_script: Any) -> None:
    told = run_script(
        SERIES
        + """
series.merge([at(1, 1), at(2, 2), at(3, 3), at(4, 4)]);
series.merge([at(3, 9)]);
console.log(JSON.stringify(steps()));
"""
    )
    assert told == [1, 2, 3]


def test_long_run_stays_sharp_at_its_newest_end(run_script: Any) -> None:
    told = run_script(
        SERIES
        + """
for (let step = 1; step <= 20000; step++) series.merge([at(step, step)]);
console.log(JSON.stringify(steps()));
"""
    )
    assert 2000 <= len(told) <= 4000
    assert told[0] == 1
    assert told[-1000:] == list(range(19001, 20001))
    assert told == sorted(told)


def test_numbers_are_written_for_people(run_script: Any) -> None:
    told = run_script("""
import { number, count, temperature, settings, optimizer } from "./page/format.js";
const recipe = { recipe: { name: "adamw", parameters: { lr: 0.001, nesterov: true } } };
console.log(JSON.stringify([
  number(null), number(undefined), number(0), number(0.12345678), number(1.5e-7), number(123456789), count(12345),
  temperature(null), temperature(0), temperature(2302.585092994046), optimizer(recipe), settings(recipe), optimizer({}),
]));
""")
    assert told == [
        *["–", "–", "0", "0.1235", "1.50e-7", "1.23e+8", "12,345"],
        *["–", "1", "10^-1000", "adamw", "lr 0.001, nesterov true", "hamiltonian"],
    ]


def test_events_are_read_out_of_bytes_however_they_are_cut(run_script: Any) -> None:
    told = run_script("""
import { events } from "./page/events.js";
const raw = new TextEncoder().encode(
  'event: server\\ndata: {"reachable": true}\\n\\n: ping\\n\\n' +
  'event: reading\\ndata: "ä€"\\ndata: 2\\n\\ndata: x\\n\\ndata: cut');
const told = [];
for (const size of [1, 2, 7, 1000]) {
  const stream = new ReadableStream({ start(controller) {
    for (let at = 0; at < raw.length; at += size) controller.enqueue(raw.slice(at, at + size));
    controller.close();
  } });
  const found = [];
  for await (const { event, data } of events(stream)) found.push([event, data]);
  told.push(found);
}
console.log(JSON.stringify(told));
""")
    assert told == [[["server", '{"reachable": true}'], ["reading", '"ä€"\n2'], ["message", "x"]]] * 4


API = """
const kept = new Map();
globalThis.sessionStorage = { getItem: (key) => kept.get(key) ?? null, setItem: (key, value) => kept.set(key, value) };
const asked = [];
let status = 200;
globalThis.fetch = async (path, { headers, signal }) => {
  asked.push([path, headers.authorization ?? null]);
  const body = status === 200 ? 'event: server\\ndata: {"reachable": true}\\n\\n' : '{"detail": "who are you?"}';
  return new Response(body, { status });
};
const { follow, get, remember } = await import("./page/api.js");
"""


def test_a_token_goes_with_each_request_as_a_header_and_in_no_address(run_script: Any) -> None:
    told = run_script(
        API
        + """
await get("v1/sessions").catch(() => {});
remember("hmt_x");
await get("v1/sessions").catch(() => {});
await new Promise((done) => { const stop = follow("a", { reading() {}, server() { stop(); done(); }, lost() {} }); });
console.log(JSON.stringify(asked));
"""
    )
    assert told == [
        ["v1/sessions", None],
        ["v1/sessions", "Bearer hmt_x"],
        ["v1/live?session_id=a", "Bearer hmt_x"],
    ]


def test_a_stream_that_is_refused_says_so(run_script: Any) -> None:
    told = run_script(
        API
        + """
status = 401;
const error = await new Promise((done) => {
  const stop = follow("a", { reading() {}, server() {}, lost(error) { stop(); done(error); } });
});
console.log(JSON.stringify([error.status, error.message]));
process.exit();
"""
    )
    assert told == [401, "who are you?"]
