// The sidecar's REST and its live stream. Paths are relative, so the page also works below a prefix.

const RETRY_MS = 2000;

export class Refused extends Error {
  constructor(problem, status) {
    super(problem.detail ?? `HTTP ${status}`);
    this.reason = problem.reason ?? "";
    this.status = status;
  }
}

export async function get(path) {
  const response = await fetch(path, { headers: { accept: "application/json" } });
  if (!response.ok) throw new Refused(await response.json().catch(() => ({})), response.status);
  return response.json();
}

export const sessionPath = (id) => `v1/sessions/${encodeURIComponent(id)}`;

// Follows the readings of one session. The browser reconnects by itself after a lost connection, but gives up after an
// error status; then this starts anew.
export function follow(id, { reading, server, lost }) {
  let source = null;
  let timer = null;

  const open = () => {
    source = new EventSource(`v1/live?session_id=${encodeURIComponent(id)}`);
    source.addEventListener("reading", (event) => reading(JSON.parse(event.data)));
    source.addEventListener("server", (event) => server(JSON.parse(event.data).reachable));
    source.addEventListener("error", () => {
      lost();
      if (source.readyState === EventSource.CLOSED) timer = setTimeout(open, RETRY_MS);
    });
  };

  open();
  return () => {
    clearTimeout(timer);
    source.close();
  };
}
