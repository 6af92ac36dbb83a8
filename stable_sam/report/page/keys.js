// Handles the keys and the light and dark theme, and starts the page.

const help = byId("help"), root = document.documentElement;
const columns = () => getComputedStyle(byId("cards")).gridTemplateColumns.split(" ").length;
const current = () => Number(document.activeElement.closest(".card")?.dataset.index ?? -1);

function isDark() {
  return root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function setTheme(dark) {
  root.dataset.theme = dark ? "dark" : "light";
  byId("theme").textContent = dark ? "Light" : "Dark";
}

const inLarge = {
  j: "next", ArrowRight: "next", ArrowDown: "next", k: "previous", ArrowLeft: "previous", ArrowUp: "previous",
  "+": "in", "=": "in", "-": "out", 0: "object", 9: "all", m: "mask", b: "prompt", p: "before",
};
const inGallery = {
  j: () => focusCard(current() + 1), k: () => focusCard(current() - 1),
  m: actions.mask, b: actions.prompt, a: () => setOutcome("all"),
  s: () => {
    const options = [...byId("sort").options];
    sortBy(options[(byId("sort").selectedIndex + 1) % options.length].value);
  },
  "/": () => byId("find").focus(),
};
outcomes.forEach((outcome, index) => (inGallery[index + 1] = () => setOutcome(outcome)));
const arrows = { ArrowRight: () => 1, ArrowLeft: () => -1, ArrowDown: columns, ArrowUp: () => -columns() };

function pressed(event) {
  const { key, target } = event;
  if (event.ctrlKey || event.altKey || event.metaKey || target.closest("select, [type=search]")) return null;
  const arrow = key.startsWith("Arrow");
  if (!arrow && (key.length > 1 || !byId("keys-on").checked)) return null;
  if (key === "t") return () => setTheme(!isDark());
  if (help.open) return key === "?" ? () => help.close() : null;
  if (key === "?") return () => help.showModal();
  if (large.open) return inLarge[key] ? actions[inLarge[key]] : null;
  if (arrow) return current() < 0 ? null : () => focusCard(current() + arrows[key]());
  return inGallery[key] ?? null;
}

addEventListener("keydown", (event) => {
  const action = pressed(event);
  if (!action) return;
  event.preventDefault();
  action();
});
byId("theme").addEventListener("click", () => setTheme(!isDark()));
byId("help-open").addEventListener("click", () => help.showModal());
help.querySelector("button").addEventListener("click", () => help.close());

byId("theme").textContent = isDark() ? "Light" : "Dark";
fillOutcomes();
fill(byId("category"), (entry) => entry.category ?? "", "without category");
fill(byId("source"), (entry) => entry.source ?? "", "unknown");
refresh();
