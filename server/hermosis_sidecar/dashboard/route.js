// Where one is on the page, as the address says it after the hash, so that a link shows another the same:
// #/  #/session/ID?axis=time  #/compare/ID,ID?quantity=loss  #/create  #/access

export const FLEET = { view: "fleet", ids: [], options: {} };
const VIEWS = ["fleet", "session", "compare", "create", "access"];

export function read(hash) {
  const [path, query = ""] = hash.replace(/^#/, "").split("?");
  const [, view = "", ids = ""] = path.split("/");
  if (!VIEWS.includes(view)) return { ...FLEET, options: Object.fromEntries(new URLSearchParams(query)) };
  return {
    view,
    ids: ids.split(",").map(decoded).filter(Boolean),
    options: Object.fromEntries(new URLSearchParams(query)),
  };
}

export function write({ view, ids = [], options = {} }) {
  const given = Object.entries(options).filter(([, value]) => value !== "" && value !== undefined);
  const query = new URLSearchParams(given).toString();
  const path = view === "fleet" ? "" : view;
  const whose = ids.length ? `/${ids.map(encodeURIComponent).join(",")}` : "";
  return `#/${path}${whose}${query ? `?${query}` : ""}`;
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return "";
  }
}
