// Makes elements of the page, and draws a prompt and its mask over their picture.
// A picture is what the page holds of an image: the whole image reduced, or a crop.

// Texts of the table become text nodes and are never read as markup.
function node(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children.filter((child) => child !== null));
  return made;
}

function shape(tag, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function mark(outcome) {
  const drawn = shape("svg", { class: `mark ${outcome}`, viewBox: "0 0 16 16", "aria-hidden": "true" });
  drawn.append(shape("use", { href: `#mark-${outcome}` }));
  return drawn;
}

// Pictures are at the end of the page, after this script, so some are missing until the page is loaded.
function pictureAddress(name) {
  const element = document.getElementById(name);
  return element?.nextElementSibling || document.readyState !== "loading"
    ? `data:image/webp;base64,${element.textContent}` : null;
}

const outlines = new WeakMap();
function maskPath(mask, size, name) {
  if (!outlines.has(mask)) outlines.set(mask, outline(mask));
  const scale = `scale(${size[1] / mask.size[1]} ${size[0] / mask.size[0]})`;
  return shape("path", { class: name, d: outlines.get(mask), transform: scale });
}

function pointShapes([x, y, label]) {
  const name = label ? "point" : "point background", d = `M${x} ${y}h0`;
  return [shape("path", { class: `${name} casing`, d }), shape("path", { class: name, d })];
}

// An SVG in pixels of the upright image, or a text that says why there is no picture.
function drawn(entry) {
  if (entry.note) return node("span", {}, `The image cannot be shown: ${entry.note}`);
  const [left, top, right, bottom] = entry.frame;
  const svg = shape("svg", { role: "img", "aria-label": described(entry) });
  const place = { x: left, y: top, width: right - left, height: bottom - top, preserveAspectRatio: "none" };
  const address = pictureAddress(entry.picture);
  svg.append(shape("image", { ...place, ...(address ? { href: address } : { "data-late": entry.picture }) }));
  if (entry.mask) svg.append(maskPath(entry.mask, entry.size, "halo"), maskPath(entry.mask, entry.size, "mask"));
  if (entry.before) svg.append(maskPath(entry.before, entry.size, "before"));
  if (entry.box) {
    const [bx0, by0, bx1, by1] = entry.box, box = { x: bx0, y: by0, width: bx1 - bx0, height: by1 - by0 };
    svg.append(shape("rect", { class: "box casing", ...box }), shape("rect", { class: "box", ...box }));
  }
  (entry.points ?? []).forEach((point) => svg.append(...pointShapes(point)));
  return svg;
}

// The window around prompt and mask, widened to a ratio of width to height and moved inside the picture.
function around(entry, ratio) {
  const [x0, y0, x1, y1] = entry.window, [left, top, right, bottom] = entry.frame;
  const width = Math.max(x1 - x0, (y1 - y0) * ratio), height = width / ratio;
  const inside = (middle, side, low, high) =>
    side > high - low ? (low + high - side) / 2 : Math.min(Math.max(middle - side / 2, low), high - side);
  return { x: inside((x0 + x1) / 2, width, left, right), y: inside((y0 + y1) / 2, height, top, bottom), width, height };
}

function setView(svg, { x, y, width, height }) {
  svg.setAttribute("viewBox", `${x} ${y} ${width} ${height}`);
}

document.addEventListener("DOMContentLoaded", () => {
  for (const image of document.querySelectorAll("[data-late]")) {
    image.setAttribute("href", pictureAddress(image.dataset.late));
    image.removeAttribute("data-late");
  }
});

const named = (entry) => entry.category ?? "prompt";
const verdictOr = (entry) => entry.verdict ?? entry.outcome;
const counted = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
const fileName = (uri) => (uri ?? "").split("/").pop();

function described(entry) {
  const mask = entry.mask ? `, mask of ${counted(entry.area, "pixel")}` : ", no mask";
  return `${named(entry)}, ${verdictOr(entry)}: ${entry.weak ?? "no prompt"}${mask}`;
}
