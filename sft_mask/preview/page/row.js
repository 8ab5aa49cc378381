// ---- the row that is drawn -----------------------------------------------------------------------------------------

const shade = (target, weight, greatest) => {
  target.classList.toggle("trained", weight !== 0);
  if (weight) target.style.setProperty("--shade", 0.25 + 0.75 * (weight / greatest));
  return target;
};

const draw = (row) => {
  const greatest = row.runs.reduce((most, [, weight]) => Math.max(most, weight), 0);
  const body = document.createDocumentFragment();
  let last = {};
  let turn, run;
  state.cells = row.cells.map((cell, number) => drawCell(row, cell, number));
  row.cells.forEach((cell, number) => {
    const at = home(row, cell);
    const now = { document: row.document[at], turn: row.notes[row.note[at]]?.[4] ?? -1, run: row.run[at] };
    if (now.document !== last.document && row.documents.length > 1) body.append(rule(row, now.document));
    if (now.document !== last.document || now.turn !== last.turn) {
      body.append((turn = drawTurn(row, at)));
      last = {};
    }
    if (now.run !== last.run) turn.append((run = shade(element("span", "run"), row.weight[at], greatest)));
    if (row.weight[at]) turn.classList.add("some");
    run.append(state.cells[number]);
    last = now;
  });
  byId("row").replaceChildren(body);
  byId("row").hidden = !row.cells.length;
  byId("empty").textContent = row.cells.length ? "" : "This row is empty.";
  byId("legend").replaceChildren(...legend(row, greatest));
  byId("lost").replaceChildren(...row.lost.map((line) => element("li", "", line)));
  markFound(row);
};

const drawTurn = (row, at) => {
  const made = element("div", "turn");
  const [, , role, , turn] = row.notes[row.note[at]] ?? [];
  const parts = [row.documents.length > 1 ? `document ${row.document[at] + 1}` : "", role, `turn ${(turn ?? 0) + 1}`];
  made.setAttribute("role", "group");
  made.setAttribute("aria-label", parts.filter(Boolean).join(", "));
  if (role) made.append(unspoken(element("span", "role", role)));
  return made;
};

const unspoken = (made) => {
  made.setAttribute("aria-hidden", "true"); // the label of the turn says it
  return made;
};

const drawCell = (row, cell, number) => {
  const made = element("span", "cell", cell.text || "∅");
  made.dataset.cell = number;
  made.setAttribute("role", "option");
  const picture = row.pictures.get(cell.start);
  if (picture?.startsWith("data:image/jpeg;base64,")) made.prepend(thumbnail(row, cell, picture));
  else if (!cell.text.trim()) made.setAttribute("aria-label", cell.text ? plural(cell.text.length, "space") : "no text");
  const weights = row.weight.subarray(cell.start, cell.end);
  made.classList.toggle("special", vocabulary[row.ids[cell.start]][2] === 1);
  made.classList.toggle("split", weights.some((weight) => weight !== weights[0]));
  made.classList.toggle("wrong", row.wrong.has(cell.start));
  return made;
};

const thumbnail = (row, cell, picture) => {
  const made = element("img", "picture");
  made.src = picture;
  made.alt = `picture ${[...row.pictures.keys()].indexOf(cell.start) + 1} of ${row.pictures.size}`;
  return made;
};

const rule = (row, document) => {
  const trained = row.weight.filter((weight, at) => weight && row.document[at] === document).length;
  const size = plural(row.documents[document], "token");
  const words = `document ${document + 1} of ${row.documents.length} · ${size}, ${count(trained)} trained`;
  return unspoken(element("div", "document", words));
};

const legend = (row, greatest) => {
  const weights = [...new Set(row.runs.map(([, weight]) => weight).filter(Boolean))];
  weights.sort((left, right) => right - left);
  const keys = weights.slice(0, 8).map((weight) =>
    shade(element("span", "key", weight === 1 ? "trained" : `trained ×${weight}`), weight, greatest));
  if (weights.length > 8) keys.push(element("span", "", `and ${weights.length - 8} more weights`));
  const how = "Point at a token, or move with the arrow keys, to see why it is trained or masked; click or Enter keeps it.";
  return [...keys, element("span", "key", "masked"), element("span", "how", how)];
};

// The cells of what was searched for; the first of them has the focus next.
const markFound = (row) => {
  if (!state.query) return;
  const parts = row.cells.map((cell) => plain(cell.text));
  const text = parts.join("");
  let end = 0;
  const ends = parts.map((part) => (end += part.length));
  for (let at = text.indexOf(state.query); at >= 0; at = text.indexOf(state.query, at + state.query.length)) {
    for (let cell = ends.findIndex((stop) => stop > at); ends[cell] - parts[cell].length < at + state.query.length; cell++) {
      state.cells[cell].classList.add("found");
    }
  }
};

// ---- one token -----------------------------------------------------------------------------------------------------

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
    const [start, end, role, , turn] = note;
    if (role) found.push(["role", role]);
    if (turn !== null) found.push(["turn", String(turn + 1)]);
    found.push(["span", `[${start}, ${end})`]);
  }
  if (row.documents.length > 1) found.push(["document", String(row.document[cell.start] + 1)]);
  return found;
};

const fillCard = (number) => {
  const cell = state.row.cells[number];
  const at = home(state.row, cell);
  const trained = state.row.weight[at] !== 0;
  byId("reason").className = trained ? "is-trained" : "";
  byId("reason").textContent = state.row.notes[state.row.note[at]]?.[3] || (trained ? "trained" : "masked");
  const pairs = facts(state.row, cell).map(([name, value]) => [element("dt", "", name), element("dd", "", value)]);
  byId("facts").replaceChildren(...pairs.flat());
};

const showCard = (number) => {
  fillCard(number);
  const card = byId("card");
  card.hidden = false;
  card.dataset.cell = number;
  placeCard();
  underline(state.row.note[home(state.row, state.row.cells[number])]);
};

// On a phone the card lies over the end of the page: its token stays above it, also once the turns around it are laid out.
const keepVisible = (number) => {
  showCard(number);
  const settle = () => {
    if (byId("card").hidden || Number(byId("card").dataset.cell) !== number) return;
    document.documentElement.style.scrollPaddingBottom = `${byId("card").offsetHeight + 12}px`;
    state.cells[number].scrollIntoView({ block: "nearest" });
    placeCard();
  };
  settle();
  requestAnimationFrame(settle);
};

const placeCard = () => {
  const card = byId("card");
  const box = state.cells[card.dataset.cell].getBoundingClientRect();
  const below = box.bottom + 8 + card.offsetHeight < innerHeight;
  card.style.top = `${Math.max(8, below ? box.bottom + 8 : box.top - 8 - card.offsetHeight)}px`;
  card.style.left = `${clamp(box.left, innerWidth - card.offsetWidth - 8)}px`;
};

const underline = (note) => {
  state.spanned.forEach((made) => made.classList.remove("span"));
  state.spanned = note < 0 ? [] : state.cells.filter((_, number) => state.row.note[state.row.cells[number].start] === note);
  state.spanned.forEach((made) => made.classList.add("span"));
};

const hideCard = () => {
  byId("card").hidden = true;
  state.cells[state.at]?.removeAttribute("aria-selected");
  state.pinned = false;
  underline(-1);
};

// The one token that Tab reaches, and whose reason a screen reader speaks with it.
const rove = (number) => {
  const before = state.cells[state.at];
  before?.removeAttribute("tabindex");
  before?.removeAttribute("aria-describedby");
  state.at = number;
  state.cells[number].tabIndex = 0;
  state.cells[number].setAttribute("aria-describedby", "reason");
  fillCard(number);
};

const focusToken = (number) => {
  if (!state.cells.length) return;
  hideCard();
  rove(clamp(number, state.cells.length - 1));
  state.cells[state.at].focus();
  keepVisible(state.at);
};

const pin = (number) => {
  const again = state.pinned && number === state.at;
  hideCard();
  if (number === undefined || again) return;
  rove(number);
  state.cells[number].focus({ preventScroll: true });
  state.pinned = true;
  state.cells[number].setAttribute("aria-selected", "true");
  keepVisible(number);
};

const noteAt = (number) => state.row.note[home(state.row, state.row.cells[number])];
const startOfPart = (number) => {
  while (number > 0 && noteAt(number - 1) === noteAt(number)) number--;
  return number;
};
const nextPart = () => {
  let number = state.at + 1;
  while (number < state.cells.length && noteAt(number) === noteAt(state.at)) number++;
  focusToken(number);
};
const previousPart = () => focusToken(startOfPart(clamp(startOfPart(state.at) - 1, state.cells.length)));
