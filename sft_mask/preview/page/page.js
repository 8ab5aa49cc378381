// ---- what a person does --------------------------------------------------------------------------------------------

const THEMES = ["auto", "dark", "light"];
const step = (by) => {
  if (!state.shown.length) return;
  select(state.here + by);
  say(headingOf(state.shown[state.here]));
};
const turnPage = (by) => step(by * Math.max(1, Math.floor(byId("list").clientHeight / ITEM) - 1));

const nextTheme = () => {
  const theme = THEMES[(THEMES.indexOf(document.documentElement.dataset.theme ?? "auto") + 1) % THEMES.length];
  document.documentElement.dataset.theme = theme;
  byId("theme").textContent = `theme: ${theme}`;
};

const toggleEdges = () => {
  const on = byId("row").classList.toggle("edges");
  byId("edges").setAttribute("aria-pressed", String(on));
};

const showPanel = (open) => { // on a narrow screen the row comes first, and all rows open above it
  byId("open").setAttribute("aria-expanded", String(open));
  byId("panel").classList.toggle("open", open);
  drawList();
  if (state.shown.length) reveal();
};

const goTo = (text) => {
  if (!overview.length) return;
  const number = /^\s*\d+\s*$/.test(text) ? Number(text) : -1;
  const named = overview.findIndex(([name]) => name.endsWith(` ${number}`));
  const index = named < 0 ? number : named;
  if (overview[index]) {
    open(index);
    toRow();
    say(headingOf(index));
  } else say(`There is no row ${text.trim()}: the page has ${titleOf(0)} to ${titleOf(overview.length - 1)}.`);
};

const copyRow = async () => {
  if (byId("copy").disabled) return;
  const text = JSON.stringify(asJson(state.row, state.shown[state.here]), null, 2);
  const copied = await navigator.clipboard?.writeText(text).then(() => true, () => false);
  say(copied || copyOldWay(text) ? "The row was copied as JSON." : "The browser does not let this page copy.");
};

const copyOldWay = (text) => { // a page from another machine without https has no clipboard of its own
  const before = document.activeElement;
  const area = element("textarea", "skip", text);
  document.body.append(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  before?.focus();
  return copied;
};

// ---- keys ----------------------------------------------------------------------------------------------------------

const everywhere = {
  j: () => step(1), k: () => step(-1), t: nextTheme, b: toggleEdges, c: copyRow,
  r: () => focusToken(state.at), "/": () => enter("query"), g: () => enter("number"), Escape: () => dismiss(),
};
const outside = {
  ArrowLeft: () => step(-1), ArrowRight: () => step(1), Home: () => step(-Infinity), End: () => step(Infinity), ...everywhere,
};
const inList = {
  ...outside, ArrowUp: () => step(-1), ArrowDown: () => step(1), PageUp: () => turnPage(-1), PageDown: () => turnPage(1),
  Enter: () => toRow(),
};
const inStrip = { ...inList, ArrowUp: () => step(1), ArrowDown: () => step(-1) }; // a slider grows upwards
const inRow = {
  ...everywhere, ArrowLeft: () => focusToken(state.at - 1), ArrowRight: () => focusToken(state.at + 1),
  ArrowUp: previousPart, ArrowDown: nextPart, Home: () => focusToken(0), End: () => focusToken(Infinity),
  Enter: () => pin(state.at), " ": () => pin(state.at),
};

const dismiss = () => {
  hideCard();
  byId("help").open = false;
};
const enter = (id) => {
  if (byId("open").offsetParent) showPanel(true);
  byId(id).select();
};
const toRow = () => {
  showPanel(false);
  focusToken(state.at);
};

const keysOf = (target) => {
  if (target.closest("#row")) return inRow;
  if (target.closest("#list")) return inList;
  if (target.closest("#strip")) return inStrip;
  return target.matches("input:not([type=checkbox]), select") ? {} : outside;
};

const press = (event) => {
  const letter = event.key.length === 1 && event.key !== " ";
  if (event.ctrlKey || event.metaKey || event.altKey || (letter && !byId("letters").checked)) return;
  const target = event.target.closest ? event.target : document.body;
  const act = Object.hasOwn(keysOf(target), event.key) ? keysOf(target)[event.key] : null;
  if (!act) return;
  event.preventDefault();
  act();
};

// ---- events --------------------------------------------------------------------------------------------------------

const on = (id, name, act) => byId(id).addEventListener(name, act);
const cellOf = (target) => {
  const made = target.closest(".cell");
  return made ? Number(made.dataset.cell) : undefined;
};
const hasMoved = (event) => { // a row that scrolls under a resting mouse is not pointed at
  const place = `${event.screenX} ${event.screenY}`;
  const moved = place !== state.mouse;
  state.mouse = place;
  return moved;
};

on("previous", "click", () => step(-1));
on("next", "click", () => step(1));
on("copy", "click", copyRow);
on("theme", "click", nextTheme);
on("edges", "click", toggleEdges);
on("open", "click", () => showPanel(byId("open").getAttribute("aria-expanded") !== "true"));
on("filters", "click", (event) => {
  if (event.target.dataset.filter === undefined) return;
  state.filter = event.target.dataset.filter;
  arrange();
  say(plural(state.shown.length, "row"));
});
on("order", "change", () => arrange(-1));
on("query", "input", (event) => search(event.target.value));
on("query", "keydown", (event) => event.key === "Enter" && state.shown.length && toRow());
on("number", "keydown", (event) => event.key === "Enter" && goTo(event.target.value));
on("list", "scroll", drawList);
for (const id of ["list", "strip"]) {
  on(id, "click", (event) => {
    const chosen = event.target.closest("[data-position]");
    if (!chosen) return;
    select(Number(chosen.dataset.position));
    showPanel(false);
  });
}
on("row", "mousemove", hasMoved);
on("row", "mouseover", (event) => {
  const number = cellOf(event.target);
  if (hasMoved(event) && number !== undefined && !state.pinned) showCard(number);
});
on("row", "mouseleave", (event) => hasMoved(event) && !state.pinned && hideCard());
on("row", "click", (event) => pin(cellOf(event.target)));
on("row", "focusin", (event) => {
  if (event.target.matches(":focus-visible") && !state.pinned) showCard(cellOf(event.target));
});
on("row", "focusout", () => state.pinned || hideCard());
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  focusToken(state.at);
});
document.addEventListener("scroll", (event) => {
  if (byId("card").hidden || event.target === byId("list")) return;
  if (byId("row").contains(document.activeElement)) placeCard();
  else hideCard();
}, { passive: true, capture: true });
addEventListener("keydown", press);
addEventListener("resize", drawList);

const opened = () => (/^#\d+$/.test(location.hash) ? clamp(Number(location.hash.slice(1)), overview.length - 1) : 0);
addEventListener("hashchange", () => overview.length && open(opened()));

drawTotals();
drawFilters();
arrange(opened());
