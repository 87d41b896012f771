// The list of sessions. Names come from the network, so they only ever become text nodes.

import { count, number, optimizer } from "./format.js";

function span(kind, text) {
  const element = document.createElement("span");
  element.className = kind;
  element.textContent = text;
  return element;
}

export class SessionList {
  constructor(room, choose) {
    this.room = room;
    this.choose = choose;
    this.rows = new Map();
    room.addEventListener("keydown", (event) => this.#walk(event));
  }

  // Shows the sessions, newest first. Rows are kept by id, so focus survives a refresh.
  show(sessions, chosen) {
    const ids = new Set(sessions.map((session) => session.session_id));
    for (const [id, row] of this.rows) {
      if (ids.has(id)) continue;
      row.remove();
      this.rows.delete(id);
    }
    sessions.forEach((session, place) => {
      const row = this.rows.get(session.session_id) ?? this.#make(session.session_id);
      this.#fill(row.firstChild, session, session.session_id === chosen);
      if (this.room.children[place] !== row) this.room.insertBefore(row, this.room.children[place] ?? null);
    });
  }

  #make(id) {
    const row = document.createElement("li");
    const button = document.createElement("button");
    button.type = "button";
    button.addEventListener("click", () => this.choose(id));
    row.append(button);
    this.rows.set(id, row);
    return row;
  }

  #fill(button, session, chosen) {
    const loss = session.reading?.energies.loss;
    const status = span("status", session.status);
    status.dataset.status = session.status;
    button.replaceChildren(
      span("name", session.display_name || session.session_id),
      span("quiet", optimizer(session.optimizer)),
      status,
      span("quiet number", `step ${count(session.step)}`),
      span("quiet number", `loss ${number(loss)}`),
    );
    if (chosen) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
  }

  #walk(event) {
    const buttons = [...this.room.querySelectorAll("button")];
    const at = buttons.indexOf(document.activeElement);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: buttons.length - 1 }[event.key];
    if (to === undefined || !buttons[to]) return;
    event.preventDefault();
    buttons[to].focus();
  }
}
