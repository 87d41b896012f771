// A map of areas: rectangles whose areas are as the sizes, near squares (Bruls, Huizing and van Wijk, "Squarified
// treemaps").

// Gives for each size, largest first, { x, y, width, height } in a rectangle of width by height.
export function treemap(sizes, width, height) {
  const whole = sizes.reduce((sum, size) => sum + size, 0);
  const boxes = [];
  if (!(whole > 0)) return sizes.map(() => ({ x: 0, y: 0, width: 0, height: 0 }));
  const areas = sizes.map((size) => (size / whole) * width * height);
  let room = { x: 0, y: 0, width, height };
  for (let first = 0; first < areas.length; ) {
    const side = Math.min(room.width, room.height);
    let last = first + 1;
    while (last < areas.length && worst(areas.slice(first, last + 1), side) <= worst(areas.slice(first, last), side)) last += 1;
    room = place(areas.slice(first, last), room, boxes);
    first = last;
  }
  return boxes;
}

// How far the least square of a row is from a square.
function worst(row, side) {
  const sum = row.reduce((one, other) => one + other, 0);
  return Math.max(...row.map((area) => Math.max((side * side * area) / (sum * sum), (sum * sum) / (side * side * area))));
}

// Puts a row along the shorter side, and gives what room is left.
function place(row, room, boxes) {
  const sum = row.reduce((one, other) => one + other, 0);
  const upright = room.width >= room.height;
  const thick = sum / (upright ? room.height : room.width) || 0;
  let at = 0;
  for (const area of row) {
    const long = thick ? area / thick : 0;
    boxes.push(
      upright
        ? { x: room.x, y: room.y + at, width: thick, height: long }
        : { x: room.x + at, y: room.y, width: long, height: thick },
    );
    at += long;
  }
  return upright
    ? { ...room, x: room.x + thick, width: Math.max(0, room.width - thick) }
    : { ...room, y: room.y + thick, height: Math.max(0, room.height - thick) };
}
