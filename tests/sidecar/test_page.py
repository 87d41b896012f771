"""The page: everything from this house, nothing trusted that comes from the network."""

import itertools
import json
import math
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.sidecar.conftest import Sidecar, push

import hermosis_sidecar
from hermosis_client import Client

DASHBOARD = Path(hermosis_sidecar.__file__).parent / "dashboard"
OURS = [file for file in DASHBOARD.iterdir() if file.suffix in (".html", ".js", ".css", ".svg")]
SCRIPTS = [file for file in OURS if file.suffix == ".js"]


def test_everything_the_page_names_is_served_from_here(sidecar: Sidecar) -> None:
    page = sidecar.http.get("/")
    assert page.headers["content-type"].startswith("text/html")
    policy = dict(each.split(" ", 1) for each in page.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert {policy[f"{kind}-src"] for kind in ("script", "style", "img", "connect")} == {"'self'"}
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
        "dangerouslySet",
    ):
        assert word not in text


def test_page_has_no_inline_script_or_style() -> None:
    """The content security policy would stop them."""
    text = (DASHBOARD / "index.html").read_text()
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", text)


def test_libraries_are_the_pinned_ones_with_their_licences() -> None:
    vendor = DASHBOARD / "vendor"
    assert "(v1.6.32)" in (vendor / "uPlot.iife.min.js").read_text()[:200]
    assert "MIT License" in (vendor / "LICENSE-uPlot").read_text()
    for name in ("preact-htm.module.js", "LICENSE-preact", "LICENSE-htm"):
        assert (vendor / name).is_file()


@pytest.fixture
def run_script(tmp_path: Path) -> Any:
    """Runs a program that may import the page's modules, and gives what it prints as JSON."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    shutil.copytree(DASHBOARD, tmp_path / "page")
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
    assert 5000 <= len(told) <= 10_000
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
  'event: reading\\nid: 7\\ndata: "ä€"\\ndata: 2\\n\\ndata: x\\n\\ndata: cut');
const told = [];
for (const size of [1, 2, 7, 1000]) {
  const stream = new ReadableStream({ start(controller) {
    for (let at = 0; at < raw.length; at += size) controller.enqueue(raw.slice(at, at + size));
    controller.close();
  } });
  const found = [];
  for await (const { event, id, data } of events(stream)) found.push([event, id, data]);
  told.push(found);
}
console.log(JSON.stringify(told));
""")
    assert told == [[["server", "", '{"reachable": true}'], ["reading", "7", '"ä€"\n2'], ["message", "", "x"]]] * 4


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
await new Promise((done) => { const stop = follow(["a"], { reading() {}, server() { stop(); done(); }, lost() {} }); });
console.log(JSON.stringify(asked));
"""
    )
    assert told == [
        ["v1/sessions", None],
        ["v1/sessions", "Bearer hmt_x"],
        ["v1/live?session_id=a", "Bearer hmt_x"],
    ]


def test_a_stream_that_breaks_goes_on_after_what_came_last(run_script: Any) -> None:
    told = run_script("""
globalThis.sessionStorage = { getItem: () => null };
const since = [];
globalThis.setTimeout = ((later) => (call) => later(call, 0))(setTimeout);
globalThis.fetch = async (path, { headers }) => {
  since.push(headers["last-event-id"] ?? null);
  return new Response(`event: reading\\nid: ${40 + since.length}\\ndata: {}\\n\\n`);
};
const { follow } = await import("./page/api.js");
await new Promise((done) => {
  const lost = () => { if (since.length === 3) { stop(); done(); } };
  const stop = follow(["a"], { reading() {}, event() {}, server() {}, lost });
});
console.log(JSON.stringify(since));
process.exit();
""")
    assert told == [None, "41", "42"]


def test_a_stream_that_is_refused_says_so(run_script: Any) -> None:
    told = run_script(
        API
        + """
status = 401;
const error = await new Promise((done) => {
  const stop = follow(["a"], { reading() {}, server() {}, lost(error) { stop(); done(error); } });
});
console.log(JSON.stringify([error.status, error.message]));
process.exit();
"""
    )
    assert told == [401, "who are you?"]


def test_a_link_says_where_one_is_and_a_broken_one_does_no_harm(run_script: Any) -> None:
    told = run_script("""
import { read, write } from "./page/route.js";
const places = [
  { view: "fleet", ids: [], options: { search: "a b&c=d", status: "" } },
  { view: "session", ids: ["run-1"], options: { axis: "time" } },
  { view: "compare", ids: ["a", "b"], options: {} },
  { view: "create" },
  { view: "access" },
];
console.log(JSON.stringify([
  places.map(write), places.map(write).map(read), ["", "#", "#/nowhere/x", "#/session/%E0%A4%A"].map(read),
]));
""")
    links, back, strange = told
    assert links == ["#/?search=a+b%26c%3Dd", "#/session/run-1?axis=time", "#/compare/a,b", "#/create", "#/access"]
    assert back[:3] == [
        {"view": "fleet", "ids": [], "options": {"search": "a b&c=d"}},
        {"view": "session", "ids": ["run-1"], "options": {"axis": "time"}},
        {"view": "compare", "ids": ["a", "b"], "options": {}},
    ]
    assert [place["view"] for place in strange] == ["fleet", "fleet", "fleet", "session"]
    assert strange[3]["ids"] == []


def test_a_curve_is_thinned_to_pixels_and_no_peak_or_gap_is_lost(run_script: Any) -> None:
    told = run_script("""
import { thinned } from "./page/thin.js";
const x = Array.from({ length: 100000 }, (_, step) => step);
const curve = x.map((step) => Math.sin(step / 900));
curve[54321] = 50;
curve[65432] = -50;
curve[76543] = null;
const all = thinned(x, [curve], { from: 0, to: 99999, pixels: 500 });
const near = thinned(x, [curve], { from: 54000, to: 54400, pixels: 500 });
const few = thinned([1, 2, 3], [[1, 1, 1]], { from: 1, to: 3, pixels: 500 });
console.log(JSON.stringify([all, near, few]));
""")
    whole, near, few = told
    assert len(whole) <= 5 * 501
    assert {0, 54321, 65432, 76543, 99999} <= set(whole)
    assert whole == sorted(set(whole))
    assert near == list(range(53999, 54402))
    assert few == [0, 1, 2]


def test_a_map_of_memory_fills_its_room_with_areas_as_the_sizes(run_script: Any) -> None:
    boxes = run_script("""
import { treemap } from "./page/treemap.js";
console.log(JSON.stringify(treemap([500, 300, 100, 60, 30, 9, 1], 100, 32)));
""")
    areas = [box["width"] * box["height"] for box in boxes]
    assert areas == pytest.approx([3.2 * size for size in (500, 300, 100, 60, 30, 9, 1)])
    for box in boxes:
        assert -1e-9 <= box["x"] <= box["x"] + box["width"] <= 100 + 1e-9
        assert -1e-9 <= box["y"] <= box["y"] + box["height"] <= 32 + 1e-9
    for one, other in itertools.combinations(boxes, 2):
        across = min(one["x"] + one["width"], other["x"] + other["width"]) - max(one["x"], other["x"])
        down = min(one["y"] + one["height"], other["y"] + other["height"]) - max(one["y"], other["y"])
        assert min(across, down) < 1e-9, "two areas overlap"


def test_curves_of_several_sessions_share_an_axis(run_script: Any) -> None:
    told = run_script("""
import { joined } from "./page/joined.js";
console.log(JSON.stringify(joined([[[1, 3], [10, 30]], [[2, 3], [5, null]]])));
""")
    assert told == [[1, 2, 3], [10, None, 30], [None, 5, None]]


def test_staleness_is_counted_in_doubling_steps(run_script: Any) -> None:
    told = run_script(
        SERIES
        + """
series.merge([0, 0, 1, 2, 3, 4, 5, 8, 9].map((staleness, place) => ({ ...at(place + 1, place + 1), staleness })));
console.log(JSON.stringify(series.staleness()));
"""
    )
    assert [(each["label"], each["count"]) for each in told] == [
        *[("0", 2), ("1", 1), ("2", 1), ("3–4", 2), ("5–8", 2), ("9–16", 1)]
    ]


RECIPES = [
    *["sgd", "nesterov", "adam", "adamw", "rmsprop", "adagrad", "rgd", "vradam", "cgd", "nesterov_ode"],
    *["hermosis", "hermosis_literal"],
]
PROFILES: list[dict[str, Any]] = [
    {"constant": {}},
    {"exponential": {"momentum_retention": 0.7}},
    {"exponential": {"cooling_rate": 0.3}},
    {"linear": {"rate": 0.4}},
    {"power": {"exponent": 3, "age": 5}},
    {"tabulated": {"knots": [{"time": 0, "beta": 1}, {"time": 2.5, "beta": 3}, {"time": 4, "beta": 2}]}},
]


def test_preview_of_every_recipe_is_what_the_server_then_does(client: Client, run_script: Any) -> None:
    recipes = {recipe.name: recipe for recipe in client.recipes()}
    assert set(recipes) == set(RECIPES), "a recipe that the preview does not know"
    given = {name: {each.name: each.default for each in recipes[name].parameters} for name in RECIPES}
    told = run_script(f"""
import {{ preview, profileOfRecipe }} from "./page/thermal.js";
const given = {json.dumps(given)};
const told = {{}};
for (const [name, values] of Object.entries(given)) told[name] = preview(profileOfRecipe(name, values), {{ steps: 5 }});
console.log(JSON.stringify(told));
""")
    for name in RECIPES:
        with client.create_session({"w": (2,)}, name) as session:
            session.initialise({"w": np.ones(2, np.float32)})
            push(session, *[1.0] * 5)
            measured = [reading.energies.retention for reading in session.history()]
        assert told[name]["retention"] == pytest.approx(measured), name


@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: "-".join(profile))
def test_preview_of_every_profile_is_what_the_server_then_does(
    sidecar: Sidecar, client: Client, run_script: Any, profile: dict[str, Any]
) -> None:
    told = run_script(f"""
import {{ preview }} from "./page/thermal.js";
console.log(JSON.stringify(preview({json.dumps(profile)}, {{ steps: 6, stepDuration: 0.8, beta: 1.5 }})));
""")
    hamiltonian = {"learning_rate": 0.01, "step_duration": 0.8, "initial_beta": 1.5, "thermal_profile": profile}
    hamiltonian["force"] = {"mode": "FORCE_MODE_UNIT"}
    spec = {"layout": {"tensors": [{"name": "w", "shape": [2]}]}, "optimizer": {"hamiltonian": hamiltonian}}
    answer = sidecar.http.post("/v1/sessions", json={"spec": spec})
    assert answer.status_code == 201, answer.text
    with client.session(answer.json()["session_id"]) as session:
        session.initialise({"w": np.ones(2, np.float32)})
        push(session, *[1.0] * 6)
        energies = [reading.energies for reading in session.history()]
    assert told["retention"] == pytest.approx([each.retention for each in energies])
    start = math.log(1.5)
    assert told["logBeta"] == pytest.approx([each.log_beta - start for each in energies], abs=1e-9)
