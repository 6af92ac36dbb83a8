// The gallery: chooses and sorts the entries, and draws the cards that are near the window.

const { scores: knownScores, entries } = JSON.parse(document.getElementById("data").textContent);
const outcomes = ["accept", "review", "reject", "failed", "reviewed"];
const byId = (id) => document.getElementById(id);
const CHUNK = 60;
const entryOf = new WeakMap();
let found = [], rendered = 0;

entries.forEach((entry, place) => {
  entry.place = place;
  entry.text = `${entry.image ?? ""}\n${entry.id}`.toLowerCase();
});

const number = (value) => value.toLocaleString("en");
const rising = (key, last = Infinity) => (a, b) => (key(a) ?? last) - (key(b) ?? last) || a.place - b.place;
const words = (a, b) => named(a).localeCompare(named(b));
const orders = {
  worst: (a, b) => a.place - b.place,
  changed: rising((entry) => entry.change && -entry.change, 1),
  random: rising((entry) => entry.draw),
  category: (a, b) => words(a, b) || a.place - b.place,
  outcome: (a, b) => outcomes.indexOf(a.outcome) - outcomes.indexOf(b.outcome) || words(a, b) || a.place - b.place,
  area: rising((entry) => entry.area || undefined),
};
const orderOf = (name) => orders[name] ?? rising((entry) => {
  const value = entry.scores?.[name];
  return value === undefined || knownScores[name].higherIsBetter ? value : -value;
});

function chosenOutcome() {
  return document.querySelector("#outcomes :checked").value;
}

// Fills a select with the values of the entries and their counts; its label stays hidden for a single value.
function fill(select, key, none) {
  const counts = new Map();
  for (const entry of entries) counts.set(key(entry), (counts.get(key(entry)) ?? 0) + 1);
  select.append(node("option", { value: "" }, select.dataset.all));
  for (const [name, count] of [...counts].sort(([a], [b]) => a.localeCompare(b)))
    select.append(node("option", { value: `=${name}` }, `${name || none} (${number(count)})`));
  select.parentElement.hidden = counts.size < 2;
}

function fillOutcomes() {
  for (const [index, outcome] of ["all", ...outcomes].entries()) {
    const count = index ? entries.filter((entry) => entry.outcome === outcome).length : entries.length;
    if (!count && index) continue;
    const input = node("input", { type: "radio", name: "outcome", value: outcome, "aria-keyshortcuts": index || "a" });
    input.defaultChecked = !index;
    byId("outcomes").append(node("label", {}, input, ...(index ? [mark(outcome)] : []), `${outcome} ${number(count)}`));
  }
}

function refresh() {
  const outcome = chosenOutcome(), category = byId("category").value, source = byId("source").value;
  const text = byId("find").value.trim().toLowerCase();
  found = entries.filter((entry) =>
    (outcome === "all" || entry.outcome === outcome) && (!category || category === `=${entry.category ?? ""}`) &&
    (!source || source === `=${entry.source ?? ""}`) && entry.text.includes(text));
  found.sort(orderOf(byId("sort").value));
  byId("cards").replaceChildren();
  rendered = 0;
  byId("none").hidden = found.length > 0;
  byId("count").value = found.length === entries.length
    ? counted(entries.length, "prompt") : `${number(found.length)} of ${counted(entries.length, "prompt")}`;
  renderMore();
}

function renderMore() {
  const cards = found.slice(rendered, rendered + CHUNK).map((entry, index) => card(entry, rendered + index));
  rendered += cards.length;
  byId("cards").append(...cards);
  cards.forEach((made) => near.observe(made));
  // The observer reports only changes, so it is started again in case the end is still near after these cards.
  end.unobserve(byId("more"));
  if (rendered < found.length) end.observe(byId("more"));
}

const end = new IntersectionObserver((seen) => seen.some((one) => one.isIntersecting) && renderMore(), { rootMargin: "1200px" });
const near = new IntersectionObserver((seen) => {
  for (const one of seen) if (one.isIntersecting) drawCard(one.target);
}, { rootMargin: "500px" });

function drawCard(made) {
  near.unobserve(made);
  const button = made.firstElementChild;
  if (button.firstChild) return;
  const entry = entryOf.get(made);
  button.append(drawn(entry));
  if (!entry.note) setView(button.firstChild, around(entry, 4 / 3));
}

function card(entry, index) {
  const open = node("button", { type: "button", class: "open", "aria-label": `Open ${described(entry)}` });
  open.addEventListener("click", () => openLarge(index));
  const scores = onCard.filter((name) => entry.scores?.[name] !== undefined).slice(0, 4);
  const made = node("article", { class: `card ${entry.outcome}`, "data-index": index, "data-id": entry.id }, open,
    node("div", { class: "text" },
      node("div", { class: "head" }, node("b", {}, named(entry)), node("span", { class: "badge" }, mark(entry.outcome), verdictOr(entry))),
      entry.reason ? node("div", { class: "reason", title: entry.reason }, entry.reason) : null,
      scores.length ? node("dl", { class: "small" }, ...scores.map((name) =>
        node("div", { title: knownScores[name].label }, node("dt", {}, knownScores[name].short), node("dd", {}, entry.scores[name].toFixed(3))))) : null,
      node("div", { class: "name", title: `${entry.image ?? ""}, prompt ${entry.id}` }, fileName(entry.image) || `prompt ${entry.id}`,
        entry.change ? ` · ${Math.round(100 * entry.change)} % changed` : "")));
  entryOf.set(made, entry);
  return made;
}
// A card shows the first four of these scores that its entry has.
const onCard = ["true_iou", "quality", "prompt_stability", "predicted_iou", "box_agreement", "stability_score"];

function setOverlay(name, on) {
  document.documentElement.classList.toggle(`no-${name}`, !on);
  byId(`show-${name}`).checked = on;
  document.querySelector(`#large [data-do="${name}"]`).setAttribute("aria-pressed", on);
}

function check(outcome) {
  const input = document.querySelector(`#outcomes [value="${outcome}"]`);
  if (input) input.checked = true;
  return input;
}

function setOutcome(outcome) {
  if (check(outcome)) refresh();
}

function sortBy(name) {
  byId("sort").value = name;
  refresh();
}

function focusCard(index) {
  if (index < 0 || index >= found.length) return;
  while (rendered <= index) renderMore();
  const made = byId("cards").children[index];
  drawCard(made);
  made.firstElementChild.focus();
  made.scrollIntoView({ block: "nearest" });
}

byId("filters").addEventListener("submit", (event) => event.preventDefault());
byId("filters").addEventListener("input", (event) => {
  if (event.target.type === "checkbox") setOverlay(event.target.id.slice(5), event.target.checked);
  else refresh();
});
byId("reset").addEventListener("click", () => {
  byId("filters").reset();
  setOverlay("mask", true);
  setOverlay("prompt", true);
  refresh();
});
addEventListener("click", ({ target: { dataset } }) => {
  if (!dataset.sort && !dataset.filter) return;
  if (dataset.sort) byId("sort").value = dataset.sort;
  else if (dataset.filter === "outcome") check(dataset.value);
  else byId(dataset.filter).value = `=${dataset.value}`;
  refresh();
  byId("gallery").focus();
});
addEventListener("beforeprint", () => document.querySelectorAll(".card").forEach(drawCard));
