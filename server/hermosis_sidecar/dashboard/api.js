// The sidecar's REST and its live stream. Paths are relative, so the page also works below a prefix.
// A token stays in this tab and goes with each request as a header, never in an address, which would be written down.

import { events } from "./events.js";

const RETRY_MS = 2000;
const TOKEN = "hermosis-token";

export const remember = (token) => sessionStorage.setItem(TOKEN, token);

function headers(accept) {
  const token = sessionStorage.getItem(TOKEN);
  return token ? { accept, authorization: `Bearer ${token}` } : { accept };
}

export class Refused extends Error {
  constructor(problem, status) {
    super(problem.detail ?? `HTTP ${status}`);
    this.reason = problem.reason ?? "";
    this.status = status;
  }
}

async function answered(path, accept, signal) {
  const response = await fetch(path, { headers: headers(accept), signal });
  if (!response.ok) throw new Refused(await response.json().catch(() => ({})), response.status);
  return response;
}

export const get = async (path) => (await answered(path, "application/json")).json();

export const sessionPath = (id) => `v1/sessions/${encodeURIComponent(id)}`;

// Follows the readings of one session, and begins anew when the connection is lost. Not by EventSource, which can send no
// header.
export function follow(id, { reading, server, lost }) {
  const leaving = new AbortController();
  let timer = null;

  const open = async () => {
    try {
      const path = `v1/live?session_id=${encodeURIComponent(id)}`;
      const response = await answered(path, "text/event-stream", leaving.signal);
      for await (const { event, data } of events(response.body)) {
        if (event === "reading") reading(JSON.parse(data));
        if (event === "server") server(JSON.parse(data).reachable);
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
