// The page: what is known, when to ask again, and when to draw.

import { Access } from "./access.js";
import { follow, get, remember } from "./api.js";
import { Compare } from "./compare.js";
import { Create } from "./create.js";
import { Fleet } from "./fleet.js";
import * as route from "./route.js";
import { SessionView } from "./session.js";
import { Sparks } from "./sparks.js";
import { html, render } from "./vendor/preact-htm.module.js";
import { Watched } from "./watched.js";

const REFRESH_MS = 2000;
const DRAW_MS = 100;

const state = {
  route: route.read(location.hash),
  link: { state: "waiting", text: "Connecting …" },
  server: null, // its capabilities
  token: null, // why a token is asked for
  fleet: { sessions: null, more: false, limit: 50, error: "" },
  overview: null,
  watched: new Map(), // by session_id, in the order of the address
  sparks: new Sparks(() => draw()),
  said: "", // to those who do not see the page
};

let stop = () => {};
let drawing = null;

// --- drawing

function draw() {
  drawing ??= setTimeout(() => requestAnimationFrame(() => {
    drawing = null;
    render(html`<${App} />`, document.getElementById("page"));
    document.getElementById("said").textContent = state.said;
    document.title = title();
  }), DRAW_MS);
}

function title() {
  const { view, ids } = state.route;
  const first = state.watched.get(ids[0]);
  const of = { session: first?.name, compare: "Compare", create: "New session", access: "Access" }[view];
  return of ? `${of} · Hermosis` : "Hermosis";
}

const VIEWS = { fleet: Fleet, session: SessionView, compare: Compare, create: Create, access: Access };

function App() {
  const View = VIEWS[state.route.view];
  return html`
    <header class="top">
      <h1><a href="#/"><img src="static/icon.svg" alt="" width="28" height="28" /> Hermosis</a></h1>
      <nav aria-label="Views">
        <a href="#/" aria-current=${state.route.view === "fleet" ? "page" : null}>Fleet</a>
        <a href="#/create" aria-current=${state.route.view === "create" ? "page" : null}>New session</a>
        <a href="#/access" aria-current=${state.route.view === "access" ? "page" : null}>Access</a>
      </nav>
      <p class="quiet device">${state.server && `${state.server.device} · server ${state.server.server_version}`}</p>
      <p id="link" class="link" data-state=${state.link.state}>${state.link.text}</p>
    </header>
    ${state.token !== null && html`<${Login} why=${state.token} />`}
    <main id="main" tabindex="-1"><${View} key=${state.route.view} state=${state} act=${act} /></main>
  `;
}

function Login({ why }) {
  const enter = (event) => {
    event.preventDefault();
    remember(new FormData(event.target).get("token").trim());
    location.reload();
  };
  return html`<form class="login" onSubmit=${enter}>
    <label for="token">Token for this server</label>
    <input id="token" name="token" type="password" autocomplete="off" required />
    <button type="submit">Enter</button>
    <p class="quiet" role="status">${why}</p>
  </form>`;
}

// --- what the views may do

const say = (text) => {
  state.said = text;
  draw();
};

const act = {
  say,
  draw,
  // Changes what the address says of this view; an empty value takes it out.
  options(changes) {
    const next = { ...state.route, options: { ...state.route.options, ...changes } };
    history.replaceState(null, "", route.write(next));
    arrive();
  },
  go(next) {
    location.hash = route.write(next);
  },
  more() {
    state.fleet.limit += 50;
    refresh();
  },
  refresh: () => refresh(),
};

// --- the server

function tell(link, text) {
  if (state.link.state === link) return;
  if (state.link.state !== "waiting" || link !== "live") say(text);
  state.link = { state: link, text };
  if (link === "live") get("v1/capabilities").then((server) => { state.server = server; draw(); }, () => {});
  draw();
}

function serverIs(reachable) {
  if (reachable) {
    state.token = null;
    tell("live", "Connected");
  } else tell("lost", "Server away, trying again …");
}

function failed(error) {
  if (error?.status === 401) {
    state.token = error.message;
    tell("asking", "Token needed");
  } else if (error?.status === undefined) tell("away", "Sidecar away, trying again …");
  else serverIs(false);
}

// --- where one is

function arrive() {
  const before = state.route;
  state.route = route.read(location.hash);
  const { view, ids, options } = state.route;
  if (before.view !== view) scrollTo(0, 0);
  watch(view === "session" ? ids.slice(0, 1) : view === "compare" ? ids.slice(0, 8) : []);
  if (view === "fleet" && before.options.search !== options.search) state.fleet.limit = 50;
  refresh();
  draw();
}

function watch(ids) {
  if (ids.join() === [...state.watched.keys()].join()) return;
  stop();
  stop = () => {};
  const watched = ids.map((id) => [id, state.watched.get(id) ?? new Watched(id, { changed: draw, say })]);
  state.watched = new Map(watched);
  if (!ids.length) return;
  stop = follow(ids, {
    reading: (reading) => state.watched.get(reading.session_id)?.take(reading),
    event: (event) => state.watched.get(event.session_id)?.happened(event),
    // Comes first on every stream and whenever it changes.
    server: (reachable) => {
      serverIs(reachable);
      if (reachable) for (const each of state.watched.values()) each.load();
    },
    lost: failed,
  });
}

// --- what is asked for every now and then

async function refresh() {
  if (state.route.view === "fleet") await refreshFleet();
  else if (!state.watched.size) await refreshServer();
  for (const each of state.watched.values()) await each.look();
}

async function refreshFleet() {
  const { search = "", status = "", sort = "-create_time" } = state.route.options;
  const query = new URLSearchParams({ sort, limit: state.fleet.limit });
  if (search) query.set("search", search);
  if (status) query.set("status", status);
  try {
    const [page, overview] = await Promise.all([get(`v1/sessions?${query}`), get("v1/overview").catch(ifMissing)]);
    Object.assign(state.fleet, { sessions: page.sessions, more: page.next_page_token !== "", error: "" });
    state.overview = overview;
    state.sparks.take(page.sessions);
    serverIs(true);
  } catch (error) {
    if (error.status === 422) state.fleet.error = error.message;
    else failed(error);
  }
  draw();
}

// Where nothing else is asked for or followed.
async function refreshServer() {
  try {
    state.server = await get("v1/capabilities");
    serverIs(true);
  } catch (error) {
    failed(error);
  }
  draw();
}

// A sidecar without an overview is no fault of the server's.
function ifMissing(error) {
  if (error.status === 401 || error.status === undefined) throw error;
  return null;
}

async function refreshForEver() {
  if (document.visibilityState === "visible") await refresh();
  setTimeout(refreshForEver, REFRESH_MS);
}

addEventListener("hashchange", arrive);
document.getElementById("skip").addEventListener("click", (event) => {
  event.preventDefault(); // The hash says where one is, and is not for this.
  document.getElementById("main").focus();
});
arrive();
refreshForEver();
