// The large view of one entry: its picture with zoom and overlays, and all its facts.

const large = byId("large"), stage = byId("stage");
let opened = 0, view = null;

function openLarge(index) {
  if (index < 0 || index >= found.length) return;
  opened = index;
  const entry = found[index];
  byId("large-title").replaceChildren(named(entry));
  byId("large-place").textContent = `${number(index + 1)} of ${number(found.length)}`;
  stage.replaceChildren(drawn(entry));
  if (entry.note) stage.firstChild.className = "note";
  const before = action("before");
  before.hidden = !entry.before;
  before.setAttribute("aria-pressed", "false");
  showExplanation(entry);
  byId("facts").replaceChildren(...facts(entry));
  if (!large.open) {
    large.showModal();
    large.focus();
  }
  byId("facts").scrollTop = 0;
  look("object");
}

const action = (name) => large.querySelector(`[data-do="${name}"]`);

function showExplanation(entry) {
  const details = byId("explanation");
  details.hidden = !entry.explanation;
  if (entry.explanation) details.querySelector("img").src = pictureAddress(entry.explanation);
}

// Shows the object, or the whole picture.
function look(what) {
  const entry = found[opened];
  if (entry.note) return;
  const part = what === "all" ? { ...entry, window: entry.frame } : entry;
  show(around(part, stage.clientWidth / stage.clientHeight));
}

function show(next) {
  view = next;
  setView(stage.firstElementChild, view);
}

function zoom(factor, at) {
  if (found[opened].note || (view.width / factor < 4 && factor > 1) || (view.width / factor > 40000 && factor < 1)) return;
  const center = at ?? { x: view.x + view.width / 2, y: view.y + view.height / 2 };
  show({
    x: center.x - (center.x - view.x) / factor, y: center.y - (center.y - view.y) / factor,
    width: view.width / factor, height: view.height / factor,
  });
}

const inImage = (event) => new DOMPoint(event.clientX, event.clientY)
  .matrixTransform(stage.firstElementChild.getScreenCTM().inverse());

stage.addEventListener("wheel", (event) => {
  if (found[opened].note) return;
  event.preventDefault();
  zoom(Math.exp(-event.deltaY / 400), inImage(event));
}, { passive: false });

stage.addEventListener("pointerdown", (event) => {
  if (found[opened].note) return;
  stage.setPointerCapture(event.pointerId);
  let last = inImage(event);
  const move = (moved) => {
    const here = inImage(moved);
    show({ ...view, x: view.x + last.x - here.x, y: view.y + last.y - here.y });
    last = inImage(moved);
  };
  stage.addEventListener("pointermove", move);
  const release = () => stage.removeEventListener("pointermove", move);
  stage.addEventListener("pointerup", release, { once: true });
  stage.addEventListener("pointercancel", release, { once: true });
});

function facts(entry) {
  const rows = (pairs) => pairs.filter(([, value]) => value !== undefined && value !== "")
    .flatMap(([name, value]) => [node("dt", {}, name), node("dd", {}, value)]);
  const track = (value) => {
    const fill = node("i");
    fill.style.width = `${100 * Math.min(Math.max(value, 0), 1)}%`;
    return node("span", { class: "track", "aria-hidden": "true" }, fill);
  };
  const rated = Object.entries(entry.scores ?? {}).flatMap(([name, value]) =>
    [node("dt", {}, knownScores[name].label), track(value), node("dd", {}, value.toFixed(3))]);
  const tight = entry.tight && `${entry.tight.slice(0, 2).join(", ")}, ${entry.tight[2]} × ${entry.tight[3]}`;
  const size = entry.size && `${number(entry.size[1])} × ${number(entry.size[0])}`;
  return [
    node("div", { class: `badge ${entry.outcome}` }, mark(entry.outcome), entry.verdict ? `${entry.outcome}: ${entry.verdict}` : entry.outcome),
    node("p", {}, entry.reason ?? ""),
    ...(entry.unexplained ? [node("p", { class: "quiet" }, `What the decoder attends to is not shown: ${entry.unexplained}`)] : []),
    ...(rated.length ? [node("h3", {}, "Scores"), node("dl", { class: "rated" }, ...rated)] : []),
    node("h3", {}, "Prompt and mask"),
    node("dl", {}, ...rows([
      ["weak prompt", entry.weak], ["detector score", entry.detector?.toFixed(3)],
      ["mask", entry.area === undefined ? "none" : counted(entry.area, "pixel")],
      ["tight box", tight], ["expected gain over the filled box", entry.gain?.toFixed(3)], ["second pass", entry.second_pass], ["segmented in", entry.view],
      ["changed", entry.change === undefined ? undefined : `${(100 * entry.change).toFixed(1)} % since revision ${entry.changed_from}`],
      ...(entry.attributes ?? []),
    ])),
    node("h3", {}, "Source"),
    node("dl", {}, ...rows([
      ["image", entry.image], ["pixels", size], ["prompt", entry.id], ["annotations", entry.source],
      ["revision", String(entry.revision)], ["night", entry.night],
    ])),
  ];
}

const actions = {
  close: () => large.close(), next: () => openLarge(opened + 1), previous: () => openLarge(opened - 1),
  in: () => zoom(1.5), out: () => zoom(1 / 1.5), object: () => look("object"), all: () => look("all"),
  mask: () => setOverlay("mask", !byId("show-mask").checked), prompt: () => setOverlay("prompt", !byId("show-prompt").checked),
  before: () => {
    if (!found[opened].before) return;
    const on = stage.firstElementChild.classList.toggle("with-before");
    action("before").setAttribute("aria-pressed", on);
    // The previous mask may lie outside of what is shown.
    look(on ? "all" : "object");
  },
};
large.addEventListener("click", (event) => {
  const button = event.target.closest("[data-do]");
  if (button) actions[button.dataset.do]();
  else if (event.target === large) large.close();
});
large.addEventListener("close", () => focusCard(opened));
