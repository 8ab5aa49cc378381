"use strict";
// Everything from the dataset arrives as JSON and is shown through textContent; text never becomes HTML.
(() => {
  const byId = (id) => document.getElementById(id);
  const { overview, vocabulary } = JSON.parse(byId("tables").textContent);
  const lines = byId("rows").textContent.split("\n"); // one JSON row per line, parsed when it is shown
  const ITEM = 48; // px, as .item in page.css
  const BARS = 240;
  const THEMES = ["auto", "dark", "light"];
  const state = { filter: "", shown: [], here: 0, row: null, pinned: null };

  const element = (tag, className = "", text = "") => {
    const made = document.createElement(tag);
    made.className = className;
    made.textContent = text;
    return made;
  };
  const count = (number) => number.toLocaleString("en");
  const plural = (number, thing) => `${count(number)} ${thing}${number === 1 ? "" : "s"}`;
  const percent = (part, whole) => `${whole ? ((100 * part) / whole).toFixed(1) : "0.0"} %`;
  const kind = (flag) => flag.split(":")[0].trim();

  // ---- one row -----------------------------------------------------------------------------------------------------

  const parse = (line) => {
    const row = JSON.parse(line);
    const size = row.ids.length;
    Object.assign(row, { weight: new Float64Array(size), document: new Int32Array(size), run: new Int32Array(size) });
    row.runs.forEach(([start, weight, document], number) => {
      const end = number + 1 < row.runs.length ? row.runs[number + 1][0] : size;
      row.weight.fill(weight, start, end);
      row.document.fill(document, start, end);
      row.run.fill(number, start, end);
    });
    row.note = new Int32Array(size).fill(-1); // where two notes overlap, the later one is shown
    row.notes.forEach(([start, end], number) => row.note.fill(number, start, end));
    row.wrong = new Map(row.labels);
    row.pictures = new Map(row.pictures);
    row.cells = cells(row);
    return row;
  };

  const cells = (row) => {
    const unusual = new Map(row.cells.map(([start, end, text]) => [start, { start, end, text }]));
    const found = [];
    for (let at = 0; at < row.ids.length; at = found.at(-1).end) {
      found.push(unusual.get(at) ?? { start: at, end: at + 1, text: vocabulary[row.ids[at]][0] });
    }
    return found;
  };

  // A character whose tokens have different weights is shown at the greatest weight; of equals, at the first.
  const home = (row, cell) => {
    let best = cell.start;
    for (let at = cell.start + 1; at < cell.end; at++) {
      if (row.weight[at] > row.weight[best]) best = at;
    }
    return best;
  };

  const shade = (target, weight, greatest) => {
    target.classList.toggle("trained", weight !== 0);
    if (weight) target.style.setProperty("--shade", 0.25 + 0.75 * (weight / greatest));
    return target;
  };

  const draw = (row) => {
    const greatest = row.runs.reduce((most, [, weight]) => Math.max(most, weight), 0);
    const body = document.createDocumentFragment();
    let last = { document: -1, turn: null, run: -1 };
    let turn, run;
    row.cells.forEach((cell, number) => {
      const at = home(row, cell);
      const now = { document: row.document[at], turn: row.notes[row.note[at]]?.[4] ?? -1, run: row.run[at] };
      if (now.document !== last.document && row.documents.length > 1) body.append(rule(row, now.document));
      if (now.document !== last.document || now.turn !== last.turn) {
        body.append((turn = element("div", "turn")));
        const role = row.notes[row.note[at]]?.[2];
        if (role) turn.append(element("span", "role", role));
        last = {};
      }
      if (now.run !== last.run) turn.append((run = shade(element("span", "run"), row.weight[at], greatest)));
      if (row.weight[at]) turn.classList.add("some");
      run.append(drawCell(row, cell, number));
      last = now;
    });
    if (!row.cells.length) body.append(element("p", "", "This row is empty."));
    byId("row").replaceChildren(body);
    byId("legend").replaceChildren(...legend(row, greatest));
    byId("lost").replaceChildren(...row.lost.map((line) => element("li", "", line)));
  };

  const drawCell = (row, cell, number) => {
    const made = element("span", "cell", cell.text || "∅");
    made.dataset.cell = number;
    const weights = row.weight.subarray(cell.start, cell.end);
    made.classList.toggle("special", vocabulary[row.ids[cell.start]][2] === 1);
    made.classList.toggle("split", weights.some((weight) => weight !== weights[0]));
    made.classList.toggle("wrong", row.wrong.has(cell.start));
    const picture = row.pictures.get(cell.start);
    if (picture?.startsWith("data:image/jpeg;base64,")) {
      const image = element("img", "picture");
      image.src = picture;
      image.alt = "";
      made.prepend(image);
    }
    return made;
  };

  const rule = (row, document) => {
    const trained = row.weight.filter((weight, at) => weight && row.document[at] === document).length;
    const size = plural(row.documents[document], "token");
    return element("div", "document", `document ${document + 1} of ${row.documents.length} · ${size}, ${count(trained)} trained`);
  };

  const legend = (row, greatest) => {
    const weights = [...new Set(row.runs.map(([, weight]) => weight).filter(Boolean))];
    weights.sort((left, right) => right - left);
    const keys = weights.slice(0, 8).map((weight) =>
      shade(element("span", "key", weight === 1 ? "trained" : `trained ×${weight}`), weight, greatest));
    if (weights.length > 8) keys.push(element("span", "", `and ${weights.length - 8} more weights`));
    return [...keys, element("span", "key", "masked"), element("span", "", "Hover over a token to see why it is trained or masked; click to pin.")];
  };

  // ---- one token ---------------------------------------------------------------------------------------------------

  const facts = (row, cell) => {
    const note = row.notes[row.note[home(row, cell)]];
    const found = [["text", cell.text || "(none)"]];
    const most = Math.min(cell.end, cell.start + 8); // an image has hundreds
    for (let at = cell.start; at < most; at++) {
      const [, bytes, special] = vocabulary[row.ids[at]];
      const weight = row.weight[at] && row.weight[at] !== 1 ? ` · weight ${row.weight[at]}` : "";
      const side = cell.end - cell.start > 1 ? (row.weight[at] ? " · trained" : " · masked") : "";
      found.push([`token ${at}`, `id ${row.ids[at]}${special ? " · special" : ""}${side}${weight}\n${bytes || "no bytes"}`]);
      if (row.wrong.has(at)) found.push(["label", `${row.wrong.get(at)}, which is another token`]);
    }
    if (most < cell.end) found.push(["more", plural(cell.end - most, "token")]);
    if (note) {
      const [start, end, role, reason, turn] = note;
      if (role) found.push(["role", role]);
      if (turn !== null) found.push(["turn", String(turn + 1)]);
      found.push(["span", `[${start}, ${end})`]);
      if (reason) found.push(["reason", reason]);
    }
    if (row.documents.length > 1) found.push(["document", String(row.document[cell.start] + 1)]);
    return found;
  };

  const showCard = (target) => {
    const cell = state.row.cells[target.dataset.cell];
    const trained = state.row.weight[home(state.row, cell)] !== 0;
    const list = element("dl");
    facts(state.row, cell).forEach(([name, value]) =>
      list.append(element("dt", "", name), element("dd", name === "reason" ? "words" : "", value)));
    const card = byId("card");
    card.replaceChildren(element("p", trained ? "is-trained" : "", trained ? "trained" : "masked"), list);
    card.hidden = false;
    const box = target.getBoundingClientRect();
    const below = box.bottom + 8 + card.offsetHeight < innerHeight;
    card.style.top = `${Math.max(8, below ? box.bottom + 8 : box.top - 8 - card.offsetHeight)}px`;
    card.style.left = `${Math.max(8, Math.min(box.left, innerWidth - card.offsetWidth - 8))}px`;
    underline(state.row.note[home(state.row, cell)]);
  };

  const underline = (note) => {
    document.querySelectorAll(".cell.span").forEach((cell) => cell.classList.remove("span"));
    if (note < 0) return;
    document.querySelectorAll(".cell").forEach((made) => {
      const { start } = state.row.cells[made.dataset.cell];
      made.classList.toggle("span", state.row.note[start] === note);
    });
  };

  const hideCard = () => {
    byId("card").hidden = true;
    state.pinned?.classList.remove("pinned");
    state.pinned = null;
    underline(-1);
  };

  const pin = (target) => {
    const again = target === state.pinned;
    hideCard();
    if (!target || again) return;
    state.pinned = target;
    target.classList.add("pinned");
    showCard(target);
  };

  // ---- all rows ----------------------------------------------------------------------------------------------------

  const titleOf = (index) => overview[index][0] || `row ${index}`;

  const select = (position) => {
    if (!state.shown.length) return;
    state.here = Math.max(0, Math.min(position, state.shown.length - 1));
    const index = state.shown[state.here];
    const [, tokens, trained, status] = overview[index];
    hideCard();
    state.row = parse(lines[index]);
    draw(state.row);
    const parts = [titleOf(index), plural(tokens, "token"), `${count(trained)} trained (${percent(trained, tokens)})`, ...status];
    byId("heading").textContent = parts.join(" · ");
    byId("previous").disabled = state.here === 0;
    byId("next").disabled = state.here === state.shown.length - 1;
    document.querySelector("article").scrollTop = 0;
    history.replaceState(null, "", `#${index}`);
    reveal();
    drawList();
    markStrip();
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
  };

  const drawItem = (position) => {
    const index = state.shown[position];
    const [, tokens, trained, status] = overview[index];
    const item = element("div", position === state.here ? "item here" : "item");
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
    byId("strip").setAttribute("aria-label", `Trained share over ${plural(state.shown.length, "row")}`);
  };

  const markStrip = () => {
    let bar = bars() - 1;
    while (bar > 0 && firstOf(bar) > state.here) bar--;
    [...byId("strip").children].forEach((column, number) => column.classList.toggle("here", number === bar));
  };

  const drawFilters = () => {
    const kinds = new Map();
    overview.forEach(([, , , status]) => new Set(status.map(kind)).forEach((name) => kinds.set(name, (kinds.get(name) ?? 0) + 1)));
    for (const usual of ["dropped", "cut", "ambiguous", "lost"]) if (!kinds.has(usual)) kinds.set(usual, 0);
    const buttons = [["", overview.length], ...[...kinds].sort()].map(([name, number]) => {
      const button = element("button", "", `${name || "all rows"} ${count(number)}`);
      button.setAttribute("aria-pressed", String(name === state.filter));
      button.disabled = number === 0;
      button.addEventListener("click", () => apply(name));
      return button;
    });
    byId("filters").replaceChildren(...buttons);
  };

  const apply = (filter, index = state.shown[state.here]) => {
    state.filter = filter;
    state.shown = [...overview.keys()].filter((at) => !filter || overview[at][3].some((flag) => kind(flag) === filter));
    byId("space").style.height = `${state.shown.length * ITEM}px`;
    drawFilters();
    drawStrip();
    select(Math.max(0, state.shown.findIndex((at) => at >= index)));
  };

  const drawTotals = () => {
    const tokens = overview.reduce((sum, row) => sum + row[1], 0);
    const trained = overview.reduce((sum, row) => sum + row[2], 0);
    byId("totals").textContent =
      `${plural(overview.length, "row")} · ${plural(tokens, "token")} · ${count(trained)} trained (${percent(trained, tokens)})`;
  };

  // ---- mouse and keyboard ------------------------------------------------------------------------------------------

  const step = (by) => select(state.here + by);
  const nextTheme = () => {
    const theme = THEMES[(THEMES.indexOf(document.documentElement.dataset.theme ?? "auto") + 1) % THEMES.length];
    document.documentElement.dataset.theme = theme;
    byId("theme").textContent = `theme: ${theme}`;
  };
  const toggleEdges = () => {
    const on = byId("row").classList.toggle("edges");
    byId("edges").setAttribute("aria-pressed", String(on));
  };
  const keys = {
    ArrowLeft: () => step(-1), ArrowRight: () => step(1), k: () => step(-1), j: () => step(1),
    Home: () => select(0), End: () => select(state.shown.length - 1),
    Escape: hideCard, t: nextTheme, b: toggleEdges,
  };
  const opened = () => (/^#\d+$/.test(location.hash) ? Number(location.hash.slice(1)) : 0);

  byId("previous").addEventListener("click", () => step(-1));
  byId("next").addEventListener("click", () => step(1));
  byId("theme").addEventListener("click", nextTheme);
  byId("edges").addEventListener("click", toggleEdges);
  byId("list").addEventListener("scroll", drawList, { passive: true });
  for (const id of ["list", "strip"]) {
    byId(id).addEventListener("click", (event) => {
      const chosen = event.target.closest("[data-position]");
      if (chosen) select(Number(chosen.dataset.position));
    });
  }
  byId("row").addEventListener("mouseover", (event) => {
    const target = event.target.closest(".cell");
    if (target && !state.pinned) showCard(target);
  });
  byId("row").addEventListener("mouseleave", () => state.pinned || hideCard());
  byId("row").addEventListener("click", (event) => pin(event.target.closest(".cell")));
  document.querySelector("article").addEventListener("scroll", hideCard, { passive: true });
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in keys)) return;
    event.preventDefault();
    keys[event.key]();
  });
  addEventListener("resize", drawList);
  addEventListener("hashchange", () => apply("", opened()));

  drawTotals();
  apply("", opened());
  if (!overview.length) byId("heading").textContent = "This page has no rows.";
})();
