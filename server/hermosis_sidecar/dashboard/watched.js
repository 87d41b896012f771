// One session that is looked at: what the server and the history say of it, and what comes live.

import { get, sessionPath } from "./api.js";
import { Series } from "./series.js";

const HISTORY_POINTS = 2000;
const MOST_EVENTS = 500;
const CATCH_UP_MS = 6000;
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
    this.caughtUp = -Infinity; // when the history was last read
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

  // Steps were missed while the stream was away. Of a session that is closed the history may still know.
  async load() {
    await this.#ask(() => this.#describe());
    const { error } = this;
    await this.#ask(async () => {
      await this.#catchUp();
      this.events = (await get(`${sessionPath(this.id)}/events`)).events;
    });
    this.error ||= error;
    if (!error) await this.#ask(() => this.#judge());
  }

  // What has no stream of its own: asked for every now and then.
  async look() {
    await this.#ask(async () => {
      await this.#describe();
      this.workers = (await get(`${sessionPath(this.id)}/workers`)).workers;
      if (performance.now() - this.caughtUp < CATCH_UP_MS) return;
      await this.#catchUp();
      await this.#judge();
    });
  }

  async #ask(questions) {
    try {
      await questions();
      this.error = "";
    } catch (error) {
      this.#lost(error);
    }
    this.changed();
  }

  // Of a session that steps fast not every reading comes live, so what came after the last one of the history is read.
  async #catchUp() {
    const { series } = this;
    this.caughtUp = performance.now();
    const query = `after_step=${this.whole}&max_readings=${HISTORY_POINTS}`;
    const { readings } = await get(`${sessionPath(this.id)}/telemetry/history?${query}`);
    if (series !== this.series) return; // Of a life that is over.
    series.merge(readings);
    this.whole = readings.at(-1)?.step ?? this.whole;
  }

  async #describe() {
    const session = await get(sessionPath(this.id));
    const before = this.session;
    this.session = session;
    // Made anew or set back: what was read is of another life.
    if (before && (before.generation !== session.generation || before.create_time !== session.create_time)) {
      this.#forget();
    }
    if (before && before.status !== session.status) this.say(`${this.name} is ${session.status}`);
  }

  async #judge() {
    const { anomalies } = await get(`${sessionPath(this.id)}/anomalies`);
    const known = new Set(this.anomalies.map(({ rule }) => rule));
    for (const { rule, text, advice } of anomalies) if (!known.has(rule)) this.say(`${this.name}: ${text}. ${advice}`);
    this.anomalies = anomalies;
  }

  #forget() {
    this.caughtUp = -Infinity;
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
