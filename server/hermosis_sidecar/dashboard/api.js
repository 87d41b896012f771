// The sidecar's REST and its live stream. Paths are relative, so the page also works below a prefix.
// A token stays in this tab and goes with each request as a header, never in an address, which would be written down.

import { events } from "./events.js";

const RETRY_MS = 2000;
const TOKEN = "hermosis-token";

export const remember = (token) => sessionStorage.setItem(TOKEN, token);

// Whether this tab brings a token.
export const isNamed = () => Boolean(sessionStorage.getItem(TOKEN));

function headers(more) {
  const token = sessionStorage.getItem(TOKEN);
  return token ? { ...more, authorization: `Bearer ${token}` } : more;
}

// A problem document of the sidecar. `faults` name the fields that are to blame.
export class Refused extends Error {
  constructor(problem, status) {
    super(problem.detail ?? `HTTP ${status}`);
    this.reason = problem.reason ?? "";
    this.status = status;
    const single = problem.field ? [{ field: problem.field, message: this.message }] : [];
    this.faults = problem.faults?.length ? problem.faults : single;
  }
}

async function answered(path, options) {
  const response = await fetch(path, { ...options, headers: headers(options.headers) });
  if (!response.ok) throw new Refused(await response.json().catch(() => ({})), response.status);
  return response;
}

export const get = async (path) => (await answered(path, { headers: { accept: "application/json" } })).json();

export const getFile = async (path) => (await answered(path, { headers: { accept: "*/*" } })).blob();

export async function send(method, path, body, more = {}) {
  const given = body === undefined ? {} : { "content-type": "application/json" };
  const response = await answered(path, {
    method,
    headers: { accept: "application/json", ...given, ...more },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  return response.json();
}

export const sessionPath = (id) => `v1/sessions/${encodeURIComponent(id)}`;

// Follows some sessions, and begins anew where it was when the connection is lost. Not by EventSource, which can send no
// header.
export function follow(ids, { reading, event, server, lost }) {
  const leaving = new AbortController();
  const query = ids.map((id) => `session_id=${encodeURIComponent(id)}`).join("&");
  let timer = null;
  let last = "";

  const open = async () => {
    try {
      const since = last ? { "last-event-id": last } : {};
      const options = { headers: { accept: "text/event-stream", ...since }, signal: leaving.signal };
      const response = await answered(`v1/live?${query}`, options);
      for await (const told of events(response.body)) {
        if (told.id) last = told.id;
        if (told.event === "reading") reading(JSON.parse(told.data));
        if (told.event === "event") event(JSON.parse(told.data));
        if (told.event === "server") server(JSON.parse(told.data).reachable);
      }
      lost();
    } catch (error) {
      if (leaving.signal.aborted) return;
      lost(error);
    }
    if (!leaving.signal.aborted) timer = setTimeout(open, RETRY_MS);
  };

  open();
  return () => {
    clearTimeout(timer);
    leaving.abort();
  };
}
