// Turns COCO's compressed run lengths into the exact outline of a mask's pixels.

// Decodes the lengths of the runs down the columns, which are background, mask, background ... Each number is written in
// groups of five bits, lowest first. From the third number on it is the difference to the number two before it.
function runLengths(text) {
  const lengths = [];
  for (let at = 0; at < text.length; ) {
    let value = 0, shift = 0, group;
    do {
      group = text.charCodeAt(at++) - 48;
      value |= (group & 31) << shift;
      shift += 5;
    } while (group & 32);
    if (group & 16 && shift < 32) value |= -1 << shift;
    if (lengths.length > 2) value += lengths[lengths.length - 2];
    lengths.push(value);
  }
  return lengths;
}

// Lists for each column every y at which the mask begins, ends, begins ...
function columnBorders(mask) {
  const [height, width] = mask.size;
  const columns = Array.from({ length: width }, () => []);
  let start = 0;
  runLengths(mask.counts).forEach((length, index) => {
    const end = Math.min(start + length, height * width);
    for (let at = start; index % 2 && at < end; ) {
      const x = Math.floor(at / height), top = at - x * height, stop = Math.min(end, (x + 1) * height);
      // Two runs of mask with an empty run of background between them are one.
      if (columns[x].at(-1) === top) columns[x].pop();
      else columns[x].push(top);
      columns[x].push(stop - x * height);
      at = stop;
    }
    start = end;
  });
  return columns;
}

// Makes the data of an SVG path along the borders of the pixels, for the fill rule evenodd. Edges run clockwise around
// the mask.
function outline(mask) {
  const [height, width] = mask.size;
  const columns = columnBorders(mask), next = new Map(), second = new Map();
  const vertex = (x, y) => x * (height + 1) + y;
  const edge = (x0, y0, x1, y1) => {
    const from = vertex(x0, y0);
    (next.has(from) ? second : next).set(from, vertex(x1, y1));
  };
  for (let x = 0; x <= width; x++) {
    const before = columns[x - 1] ?? [], here = columns[x] ?? [];
    for (let k = 0; k < here.length; k += 2) {
      edge(x, here[k], x + 1, here[k]);
      edge(x + 1, here[k + 1], x, here[k + 1]);
    }
    // Where only one of two neighbouring columns is mask, the border runs between them.
    for (let i = 0, j = 0, y = 0; i < before.length || j < here.length; ) {
      const until = Math.min(before[i] ?? Infinity, here[j] ?? Infinity);
      if (i % 2 && !(j % 2)) edge(x, y, x, until);
      if (j % 2 && !(i % 2)) edge(x, until, x, y);
      if (before[i] === until) i++;
      if (here[j] === until) j++;
      y = until;
    }
  }
  return linked(next, second, height + 1);
}

function linked(next, second, stride) {
  const parts = [];
  while (next.size) {
    const first = next.keys().next().value;
    let from = first, direction = "";
    parts.push(`M${Math.floor(first / stride)} ${first % stride}`);
    do {
      const to = next.get(from);
      if (second.has(from)) {
        next.set(from, second.get(from));
        second.delete(from);
      } else next.delete(from);
      const along = Math.floor(to / stride) === Math.floor(from / stride) ? "V" : "H";
      const step = along + (along === "V" ? to % stride : Math.floor(to / stride));
      if (along === direction) parts[parts.length - 1] = step;
      else parts.push(step);
      direction = along;
      from = to;
    } while (from !== first);
    parts.push("Z");
  }
  return parts.join("");
}
