// ---- all rows ------------------------------------------------------------------------------------------------------

const ITEM = 48; // px, as .item in page.css
const BARS = 240;
const share = (index) => overview[index][2] / Math.max(overview[index][1], 1);
const orders = {
  data: (left, right) => left - right,
  most: (left, right) => share(right) - share(left),
  least: (left, right) => share(left) - share(right),
  longest: (left, right) => overview[right][1] - overview[left][1],
  shortest: (left, right) => overview[left][1] - overview[right][1],
};

const select = (position) => {
  const inside = byId("row").contains(document.activeElement);
  state.here = clamp(position, state.shown.length - 1);
  const index = state.shown[state.here];
  hideCard();
  state.row = parse(lines[index]);
  draw(state.row);
  byId("heading").textContent = headingOf(index);
  byId("flags").replaceChildren(...flagsOf(index).map((flag) => element("li", "", flag)));
  byId("previous").disabled = state.here === 0;
  byId("next").disabled = state.here === state.shown.length - 1;
  byId("copy").disabled = false;
  document.querySelector("article").scrollTop = 0;
  history.replaceState(null, "", `#${index}`);
  startTokens(inside);
  reveal();
  drawList();
  markStrip();
};

const startTokens = (inside) => {
  const found = state.cells.findIndex((made) => made.classList.contains("found"));
  state.at = 0;
  if (!state.cells.length) return;
  rove(Math.max(0, found));
  if (found > 0) state.cells[found].scrollIntoView({ block: "center" });
  if (inside) focusToken(state.at);
};

const headingOf = (index) => {
  const [, tokens, trained, status] = overview[index];
  const parts = [titleOf(index), plural(tokens, "token"), `${count(trained)} trained (${percent(trained, tokens)})`];
  return [...parts, ...new Set(status.map(kind))].join(" · ");
};

const flagsOf = (index) => overview[index][3].filter((flag) => flag !== kind(flag)); // those that say why

const selectNothing = (why) => {
  hideCard();
  state.cells = [];
  for (const id of ["row", "flags", "legend", "lost"]) byId(id).replaceChildren();
  for (const id of ["previous", "next", "copy"]) byId(id).disabled = true;
  byId("row").hidden = true;
  byId("heading").textContent = why;
  drawList();
};

const reveal = () => {
  const list = byId("list");
  const top = state.here * ITEM;
  if (top < list.scrollTop || top + ITEM > list.scrollTop + list.clientHeight) {
    list.scrollTop = top - (list.clientHeight - ITEM) / 2;
  }
};

const drawList = () => {
  const list = byId("list");
  const first = Math.max(0, Math.floor(list.scrollTop / ITEM) - 4);
  const last = Math.min(state.shown.length, Math.ceil((list.scrollTop + list.clientHeight) / ITEM) + 4);
  const items = [];
  for (let position = first; position < last; position++) items.push(drawItem(position));
  byId("space").replaceChildren(...items);
  const here = items.find((item) => item.classList.contains("here"));
  if (here) list.setAttribute("aria-activedescendant", here.id);
  else list.removeAttribute("aria-activedescendant");
};

const drawItem = (position) => {
  const index = state.shown[position];
  const [, tokens, trained, status] = overview[index];
  const item = element("div", position === state.here ? "item here" : "item");
  const attributes = {
    id: `item-${index}`, role: "option", "aria-selected": position === state.here, "aria-label": headingOf(index),
    "aria-posinset": position + 1, "aria-setsize": state.shown.length,
  };
  Object.entries(attributes).forEach(([name, value]) => item.setAttribute(name, value));
  item.style.top = `${position * ITEM}px`;
  item.dataset.position = position;
  const top = element("b");
  top.append(element("span", "", titleOf(index)), element("span", "flagged", status.map(kind).join(", ")));
  const bottom = element("small");
  const meter = element("span", "meter");
  meter.style.setProperty("--share", percent(trained, tokens).replace(" ", ""));
  bottom.append(meter, element("span", "", percent(trained, tokens)), element("span", "", `of ${count(tokens)}`));
  item.append(top, bottom);
  return item;
};

const bars = () => Math.min(state.shown.length, BARS);
const firstOf = (bar) => Math.floor((bar * state.shown.length) / bars());

const drawStrip = () => {
  const made = [];
  for (let bar = 0; bar < bars(); bar++) {
    const indexes = state.shown.slice(firstOf(bar), firstOf(bar + 1));
    const tokens = indexes.reduce((sum, index) => sum + overview[index][1], 0);
    const trained = indexes.reduce((sum, index) => sum + overview[index][2], 0);
    const column = element("i", indexes.some((index) => overview[index][3].length) ? "flag" : "");
    column.style.setProperty("--share", percent(trained, tokens).replace(" ", ""));
    column.dataset.position = firstOf(bar);
    const names = indexes.length > 1 ? `${titleOf(indexes[0])} – ${titleOf(indexes.at(-1))}` : titleOf(indexes[0]);
    column.title = `${names}: ${percent(trained, tokens)} trained`;
    made.push(column);
  }
  byId("strip").replaceChildren(...made);
  byId("strip").setAttribute("aria-valuemax", Math.max(1, state.shown.length));
};

const markStrip = () => {
  let bar = bars() - 1;
  while (bar > 0 && firstOf(bar) > state.here) bar--;
  [...byId("strip").children].forEach((column, number) => column.classList.toggle("here", number === bar));
  byId("strip").setAttribute("aria-valuenow", state.here + 1);
  byId("strip").setAttribute("aria-valuetext", headingOf(state.shown[state.here]));
};

const drawFilters = () => {
  const kinds = new Map();
  overview.forEach(([, , , status]) => new Set(status.map(kind)).forEach((name) => kinds.set(name, (kinds.get(name) ?? 0) + 1)));
  for (const usual of ["dropped", "cut", "ambiguous", "lost"]) if (!kinds.has(usual)) kinds.set(usual, 0);
  const buttons = [["", overview.length], ...[...kinds].sort()].map(([name, number]) => {
    const button = element("button", "", `${name || "all rows"} ${count(number)}`);
    button.dataset.filter = name;
    button.disabled = number === 0;
    return button;
  });
  byId("filters").replaceChildren(...buttons);
};

const isShown = (index) =>
  (!state.filter || overview[index][3].some((flag) => kind(flag) === state.filter)) && (!state.found || state.found.has(index));

// The rows that filter and search leave, in the order that was chosen; `index` or the next one is opened.
const arrange = (index = state.shown[state.here] ?? 0) => {
  const order = byId("order").value;
  state.shown = [...overview.keys()].filter(isShown).sort(orders[order]);
  const next = order === "data" ? state.shown.findIndex((at) => at >= index) : state.shown.indexOf(index);
  byId("space").style.height = `${state.shown.length * ITEM}px`;
  byId("strip").hidden = byId("list").hidden = !state.shown.length;
  for (const button of byId("filters").children) button.setAttribute("aria-pressed", button.dataset.filter === state.filter);
  drawStrip();
  if (state.shown.length) select(Math.max(0, next));
  else selectNothing(overview.length ? "No row matches." : "This page has no rows.");
};

const open = (index) => {
  if (!state.shown.includes(index)) {
    Object.assign(state, { filter: "", query: "", found: null });
    byId("query").value = "";
    arrange(index);
  } else select(state.shown.indexOf(index));
};

// Rows are read in slices, so that the page stays responsive while it searches.
const search = (query) => {
  const found = new Set();
  let index = 0;
  const mine = (state.query = plain(query));
  const slice = () => {
    if (mine !== state.query) return; // another search has begun
    const until = performance.now() + 20;
    for (; mine && index < overview.length && performance.now() < until; index++) {
      if (textOf(index).includes(mine) || titleOf(index).toLowerCase().includes(mine)) found.add(index);
    }
    if (mine && index < overview.length) {
      say("Searching …");
      setTimeout(slice);
      return;
    }
    state.found = mine ? found : null;
    arrange();
    say(`${count(state.shown.length)} of ${plural(overview.length, "row")}`);
  };
  slice();
};

const drawTotals = () => {
  const tokens = overview.reduce((sum, row) => sum + row[1], 0);
  const trained = overview.reduce((sum, row) => sum + row[2], 0);
  byId("totals").textContent =
    `${plural(overview.length, "row")} · ${plural(tokens, "token")} · ${count(trained)} trained (${percent(trained, tokens)})`;
};
