// Several curves, each with an x of its own, on one axis.

// [x of all, ...values]: undefined where a curve has no point.
export function joined(curves) {
  const x = [...new Set(curves.flatMap(([own]) => own))].sort((one, other) => one - other);
  const place = new Map(x.map((value, at) => [value, at]));
  return [x, ...curves.map(([own, values]) => {
    const column = new Array(x.length);
    own.forEach((value, at) => { column[place.get(value)] = values[at]; });
    return column;
  })];
}
