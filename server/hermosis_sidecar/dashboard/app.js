// The page: which session is chosen, what is known of it, and when to ask again.

import { follow, get, remember, sessionPath } from "./api.js";
import { Charts } from "./charts.js";
import { count, number, optimizer, settings, temperature } from "./format.js";
import { SessionList } from "./list.js";
import { Series } from "./series.js";

const REFRESH_MS = 2000;
const DRAW_MS = 200;
const RESTING_MS = 5000; // without a reading, a session is at rest

const byId = (id) => document.getElementById(id);

const page = {
  chosen: null, // session_id
  session: null, // as the server last described it
  series: new Series(),
  whole: 0, // the step up to which the history has been read
  lived: -Infinity, // when the last live reading came, by this page's clock
  stop: null, // ends the live stream of the chosen session
  drawing: null, // timer of the next drawing
};

const charts = new Charts(byId("charts"));
const list = new SessionList(byId("sessions"), (id) => { location.hash = encodeURIComponent(id); });

function tell(state, text) {
  const link = byId("link");
  if (link.dataset.state === state) return;
  link.dataset.state = state;
  link.textContent = text;
  if (state === "live") get("v1/capabilities").then(describeServer, () => {});
}

const serverIs = (reachable) =>
  reachable ? tell("live", "Connected") : tell("lost", "Server away, trying again …");
const sidecarLost = () => tell("lost", "Sidecar away, trying again …");

// The server asks who we are, or no longer believes it.
function askForToken(error) {
  tell("lost", "Token needed");
  byId("login-note").textContent = error.message;
  byId("login").hidden = false;
}

byId("login").addEventListener("submit", (event) => {
  event.preventDefault();
  remember(byId("token").value.trim());
  location.reload();
});

function describeServer(capabilities) {
  byId("device").textContent = `${capabilities.device} · server ${capabilities.server_version}`;
}

// --- the chosen session

function choose(id) {
  if (id === page.chosen) return;
  page.stop?.();
  Object.assign(page, { chosen: id, session: null, series: new Series(), whole: 0, lived: -Infinity, stop: null });
  byId("session-title").textContent = id;
  note("");
  byId("session-status").hidden = true;
  byId("facts").hidden = byId("charts").hidden = false;
  document.title = `${id} · Hermosis`;
  draw();
  page.stop = follow(id, {
    reading: (reading) => {
      page.series.merge([reading]);
      page.lived = performance.now();
      drawSoon();
    },
    // Comes first on every stream and whenever it changes.
    server: (reachable) => {
      serverIs(reachable);
      if (reachable) loadHistory(id);
    },
    lost: (error) => (error?.status === 401 ? askForToken(error) : sidecarLost()),
  });
}

// Steps may have been missed while the stream was away, so what came after the last reading of the history is read again.
async function loadHistory(id) {
  try {
    const [session, history] = await Promise.all([
      get(sessionPath(id)),
      get(`${sessionPath(id)}/telemetry/history?after_step=${page.whole}&max_readings=2000`),
    ]);
    if (page.chosen !== id) return;
    if (session.step < page.whole) {
      Object.assign(page, { series: new Series(), whole: 0 }); // Made anew or set back: the old curve is of another life.
      await loadHistory(id);
      return;
    }
    page.session = { ...session, ...session.spec };
    page.series.merge(history.readings);
    page.whole = history.readings.at(-1)?.step ?? page.whole;
  } catch (error) {
    if (page.chosen === id) note(error.message);
  }
  drawSoon();
}

function drawSoon() {
  page.drawing ??= setTimeout(() => {
    page.drawing = null;
    draw();
  }, DRAW_MS);
}

function draw() {
  charts.draw(page.series);
  const { session } = page;
  if (!session) return byId("facts").replaceChildren();
  byId("session-title").textContent = session.display_name || session.session_id;
  const status = byId("session-status");
  status.hidden = false;
  status.textContent = status.dataset.status = session.status;
  note(meaning(session));
  const newest = page.series.newest;
  const energies = newest?.energies ?? {};
  showFacts([
    ["Step", count(Math.max(session.step, newest?.step ?? 0))],
    ["Loss", number(energies.loss)],
    ["Smoothed loss", number(energies.smoothed_loss)],
    ["Steps a second", number(performance.now() - page.lived < RESTING_MS ? page.series.rate() : 0)],
    ["Optimizer", optimizer(session.optimizer), settings(session.optimizer)],
    ["Learning rate", number(energies.learning_rate)],
    ["Temperature", temperature(energies.log_beta)],
    ["Gradient norm", number(energies.gradient_norm)],
    ["Parameters", count(session.parameter_count)],
    ["Workers", count(session.workers)],
  ]);
}

const note = (text) => { byId("session-note").textContent = text; };

// What a status means for the one who looks on.
function meaning({ status, status_reason: reason }) {
  return {
    CREATING: "Waiting for a worker to upload the initial parameters.",
    PAUSED: "Takes no gradients until it is resumed.",
    RECOVERING: "Being rebuilt after a restart of the server.",
    FAILED: `Quarantined: ${reason}`,
    CLOSED: "Closed; what is shown is the last that was seen of it.",
  }[status] ?? "";
}

function showFacts(facts) {
  byId("facts").replaceChildren(...facts.map(([name, value, more]) => {
    const fact = document.createElement("div");
    const term = document.createElement("dt");
    const description = document.createElement("dd");
    term.textContent = name;
    description.textContent = value;
    if (more) fact.title = description.title = more;
    fact.append(term, description);
    return fact;
  }));
}

// --- the list

async function refresh() {
  try {
    const { sessions } = await get("v1/sessions?limit=200");
    if (!page.stop) serverIs(true);
    sessions.reverse(); // newest first
    byId("session-count").textContent = sessions.length ? `(${sessions.length})` : "";
    byId("no-sessions").hidden = sessions.length > 0;
    if (!page.chosen && sessions.length) choose(hashChoice() ?? liveliest(sessions).session_id);
    list.show(sessions, page.chosen);
    const known = sessions.find((session) => session.session_id === page.chosen);
    if (known?.reading) page.series.merge([known.reading]); // The last of a run may fall between two live ones.
    if (page.session) Object.assign(page.session, known ?? { status: "CLOSED" });
    drawSoon();
  } catch (error) {
    if (error.status === undefined) sidecarLost();
    else if (error.status === 401) askForToken(error);
    else serverIs(false);
  }
}

// The one that stepped last; the newest where none has.
function liveliest(sessions) {
  const time = (session) => (session.reading ? Date.parse(session.reading.time) : 0);
  return sessions.reduce((best, session) => (time(session) > time(best) ? session : best));
}

async function refreshForEver() {
  if (document.visibilityState === "visible") await refresh();
  setTimeout(refreshForEver, REFRESH_MS);
}

function hashChoice() {
  try {
    return decodeURIComponent(location.hash.slice(1)) || null;
  } catch {
    return null;
  }
}

addEventListener("hashchange", () => {
  const id = hashChoice();
  if (id === null || id === "session") return; // the skip link
  choose(id);
  refresh();
});

refreshForEver();
