// The readings of one session as columns, in order of step.

const MOST_POINTS = 10_000;
const STEP = Symbol("step");
const TIME = Symbol("time");

function valueOf(reading, name) {
  if (name === STEP) return reading.step;
  return name === TIME ? Date.parse(reading.time) / 1000 : reading.energies[name];
}

export class Series {
  constructor() {
    this.readings = [];
    this.columns = new Map(); // those that were asked for, by name
  }

  get newest() {
    return this.readings.at(-1) ?? null;
  }

  // Takes readings in order of step, from the history or live, in whatever order the two arrive.
  merge(readings) {
    for (const reading of readings) {
      const last = this.newest;
      if (last === null || reading.step > last.step) {
        this.readings.push(reading);
        for (const [name, column] of this.columns) column.push(valueOf(reading, name));
        continue;
      }
      this.columns.clear();
      if (Date.parse(reading.time) > Date.parse(last.time)) {
        // A later time at an earlier step: the session was set back, so what followed that step is undone.
        this.readings.length = this.#placeOf(reading.step);
        this.readings.push(reading);
      } else {
        const place = this.#placeOf(reading.step);
        const known = this.readings[place].step === reading.step;
        this.readings.splice(place, known ? 1 : 0, reading);
      }
    }
    if (this.readings.length > MOST_POINTS) this.#thin();
  }

  // A quantity of all readings. The array grows with them and is not to be changed.
  column(name) {
    let column = this.columns.get(name);
    if (column === undefined) {
      column = this.readings.map((reading) => valueOf(reading, name));
      this.columns.set(name, column);
    }
    return column;
  }

  steps() {
    return this.column(STEP);
  }

  // Seconds of each reading, since 1970.
  times() {
    return this.column(TIME);
  }

  // How many of the readings had each staleness: { label, count } of none, 1, 2, 3 to 4, 5 to 8 and so on.
  staleness() {
    const counts = [];
    for (const { staleness } of this.readings) {
      const place = staleness < 1 ? 0 : 1 + Math.ceil(Math.log2(staleness));
      counts[place] = (counts[place] ?? 0) + 1;
    }
    return Array.from(counts, (found = 0, place) => ({ label: between(place), count: found }));
  }

  // Steps a second over the last few seconds of readings.
  rate() {
    const last = this.newest;
    if (last === null) return null;
    const until = Date.parse(last.time);
    const first = this.readings.find((reading) => until - Date.parse(reading.time) < 5000);
    const seconds = (until - Date.parse(first.time)) / 1000;
    return seconds > 0 ? (last.step - first.step) / seconds : null;
  }

  #placeOf(step) {
    let low = 0;
    let high = this.readings.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.readings[middle].step < step) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  // Drops every other point of the older half, so that the newest steps stay sharp.
  #thin() {
    const half = this.readings.length >> 1;
    this.columns.clear();
    this.readings = this.readings.filter((_, place) => place >= half || place % 2 === 0);
  }
}

function between(place) {
  if (place < 3) return String(place);
  return `${2 ** (place - 2) + 1}–${2 ** (place - 1)}`;
}
