// Thins curves to what a screen can show: of the points that fall on one column of pixels, those that are drawn the same.

// First place whose value is not below.
export function placeOf(values, value) {
  let low = 0;
  let high = values.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (values[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low;
}

// Places to keep, ascending, of curves over the same increasing x: in each of `pixels` equal intervals of [from, to] the
// first, the last, the least and the largest point of each curve, and a neighbour beyond either end. A gap stays one.
export function thinned(x, curves, { from, to, pixels }) {
  const begin = Math.max(0, placeOf(x, from) - 1);
  const end = Math.min(x.length, placeOf(x, to) + 2);
  if (end - begin <= 2 * pixels) return Array.from({ length: end - begin }, (_, place) => begin + place);
  const kept = new Set();
  const width = (to - from) / pixels;
  const column = (place) => Math.floor((x[place] - from) / width);
  for (let first = begin; first < end; ) {
    let last = first;
    while (last + 1 < end && column(last + 1) === column(first)) last += 1;
    kept.add(first).add(last);
    for (const curve of curves) keepExtremes(curve, first, last, kept);
    first = last + 1;
  }
  return [...kept].sort((one, other) => one - other);
}

function keepExtremes(curve, first, last, kept) {
  let least = -1;
  let largest = -1;
  let gap = -1;
  for (let place = first; place <= last; place += 1) {
    const value = curve[place];
    if (value === null || value === undefined) gap = place;
    else {
      if (least < 0 || value < curve[least]) least = place;
      if (largest < 0 || value > curve[largest]) largest = place;
    }
  }
  for (const place of [least, largest, gap]) if (place >= 0) kept.add(place);
}
