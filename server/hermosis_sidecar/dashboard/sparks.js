// The last losses of each session in the list, for its small curve.

import { get, sessionPath } from "./api.js";

const MOST_POINTS = 80;

export class Sparks {
  constructor(changed) {
    this.changed = changed;
    this.byId = new Map(); // session_id → { life, points: [{ step, loss }] }
    this.asked = Promise.resolve();
  }

  // Takes the newest reading of each session; of one not seen before, its history is asked for, one after the other.
  take(sessions) {
    for (const session of sessions) {
      const { session_id: id, create_time: since, generation, reading } = session;
      const life = `${since} ${generation}`;
      if (this.byId.get(id)?.life !== life) {
        this.byId.set(id, { life, points: [] });
        if (reading) this.asked = this.asked.then(() => this.#load(id, life));
      }
      if (reading) this.#merge(id, [reading]);
    }
    const listed = new Set(sessions.map((session) => session.session_id));
    for (const id of this.byId.keys()) if (!listed.has(id)) this.byId.delete(id);
  }

  points(id) {
    return this.byId.get(id)?.points ?? [];
  }

  async #load(id, life) {
    if (this.byId.get(id)?.life !== life) return;
    try {
      const { readings } = await get(`${sessionPath(id)}/telemetry/history?max_readings=${MOST_POINTS}`);
      if (this.byId.get(id)?.life !== life) return;
      this.#merge(id, readings);
      this.changed();
    } catch {
      // The curve begins now instead.
    }
  }

  #merge(id, readings) {
    const known = this.byId.get(id);
    const bySteps = new Map(known.points.map((point) => [point.step, point]));
    for (const { step, energies } of readings) bySteps.set(step, { step, loss: energies.loss });
    known.points = [...bySteps.values()].sort((one, other) => one.step - other.step).slice(-MOST_POINTS);
  }
}
