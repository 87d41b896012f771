// One session that is looked at: what the server and the history say of it, and what comes live.

import { get, sessionPath } from "./api.js";
import { Series } from "./series.js";

const HISTORY_POINTS = 2000;
const MOST_EVENTS = 500;
const ANOMALIES_MS = 6000;
const RESTING_MS = 5000; // without a reading, a session is at rest

export class Watched {
  // `changed` is called whenever there is something new to draw, `say` with what somebody who does not see should hear.
  constructor(id, { changed, say }) {
    this.id = id;
    this.changed = changed;
    this.say = say;
    this.session = null; // as the server last described it
    this.error = "";
    this.events = [];
    this.workers = [];
    this.anomalies = [];
    this.judged = -Infinity; // when anomalies were asked for
    this.lived = -Infinity; // when the last live reading came, by this page's clock
    this.#forget();
  }

  get name() {
    return this.session?.spec.display_name || this.id;
  }

  get rate() {
    return performance.now() - this.lived < RESTING_MS ? this.series.rate() : 0;
  }

  take(reading) {
    this.series.merge([reading]);
    this.lived = performance.now();
    this.changed();
  }

  happened(event) {
    if (this.events.some((known) => known.event_id === event.event_id)) return;
    this.events = [...this.events, event].slice(-MOST_EVENTS);
    this.say(`${this.name}: ${event.kind.replaceAll("_", " ")}${event.text ? `, ${event.text}` : ""}`);
    this.look();
  }

  // Steps may have been missed while the stream was away, so what came after the last reading of the history is read
  // again.
  async load() {
    try {
      await this.#describe();
      const path = `${sessionPath(this.id)}/telemetry/history?after_step=${this.whole}&max_readings=${HISTORY_POINTS}`;
      const [history, { events }] = await Promise.all([get(path), get(`${sessionPath(this.id)}/events`)]);
      this.series.merge(history.readings);
      this.whole = history.readings.at(-1)?.step ?? this.whole;
      this.events = events;
      this.error = "";
    } catch (error) {
      this.#lost(error);
    }
    this.changed();
  }

  // What has no stream of its own: asked for every now and then.
  async look() {
    try {
      await this.#describe();
      this.workers = (await get(`${sessionPath(this.id)}/workers`)).workers;
      if (performance.now() - this.judged > ANOMALIES_MS) {
        this.judged = performance.now();
        this.#warn((await get(`${sessionPath(this.id)}/anomalies`)).anomalies);
      }
      this.error = "";
    } catch (error) {
      this.#lost(error);
    }
    this.changed();
  }

  async #describe() {
    const session = await get(sessionPath(this.id));
    const before = this.session;
    this.session = session;
    // Made anew or set back: what was read is of another life.
    if (before && (before.generation !== session.generation || before.create_time !== session.create_time)) {
      this.#forget();
      await this.load();
    }
    if (before && before.status !== session.status) this.say(`${this.name} is ${session.status}`);
  }

  #warn(anomalies) {
    const known = new Set(this.anomalies.map(({ rule }) => rule));
    for (const { rule, text, advice } of anomalies) if (!known.has(rule)) this.say(`${this.name}: ${text}. ${advice}`);
    this.anomalies = anomalies;
  }

  #forget() {
    this.series = new Series();
    this.whole = 0; // the step up to which the history has been read
  }

  #lost(error) {
    if (error.status === 404 && this.session) {
      this.session = { ...this.session, status: "CLOSED" };
      this.workers = this.anomalies = [];
    } else if (error.status !== undefined) {
      this.error = error.message;
    }
  }
}
