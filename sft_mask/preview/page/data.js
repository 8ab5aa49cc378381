// Everything from the dataset arrives as JSON and is shown through textContent; text never becomes HTML.

const byId = (id) => document.getElementById(id);
const { overview, vocabulary } = JSON.parse(byId("tables").textContent);
const lines = byId("rows").textContent.split("\n"); // one JSON row per line, parsed when it is shown
const state = {
  filter: "", query: "", found: null, shown: [], here: 0, // which rows are shown, and the position among them
  row: null, cells: [], at: 0, pinned: false, spanned: [], // the row, its elements, the token with the focus
  mouse: "",
};

const element = (tag, className = "", text = "") => {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
};
const count = (number) => number.toLocaleString("en");
const plural = (number, thing) => `${count(number)} ${thing}${number === 1 ? "" : "s"}`;
const percent = (part, whole) => `${whole ? ((100 * part) / whole).toFixed(1) : "0.0"} %`;
const clamp = (number, most) => Math.max(0, Math.min(number, most));
const kind = (flag) => flag.split(":")[0].trim();
const titleOf = (index) => overview[index][0] || `row ${index}`;
const say = (text) => (byId("said").textContent = text);

// ---- one row -------------------------------------------------------------------------------------------------------

const parse = (line) => {
  const row = JSON.parse(line);
  const size = row.ids.length;
  Object.assign(row, { weight: new Float64Array(size), document: new Int32Array(size), run: new Int32Array(size) });
  row.runs.forEach(([start, weight, document], number) => {
    const end = endOf(row, number);
    row.weight.fill(weight, start, end);
    row.document.fill(document, start, end);
    row.run.fill(number, start, end);
  });
  row.note = new Int32Array(size).fill(-1); // where two notes overlap, the later one is shown
  row.notes.forEach(([start, end], number) => row.note.fill(number, start, end));
  row.wrong = new Map(row.labels);
  row.pictures = new Map(row.pictures);
  row.cells = cellsOf(row);
  return row;
};

const endOf = (row, number) => (number + 1 < row.runs.length ? row.runs[number + 1][0] : row.ids.length);

const cellsOf = ({ ids, cells }) => {
  const unusual = new Map(cells.map(([start, end, text]) => [start, { start, end, text }]));
  const found = [];
  for (let at = 0; at < ids.length; at = found.at(-1).end) {
    found.push(unusual.get(at) ?? { start: at, end: at + 1, text: vocabulary[ids[at]][0] });
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

// ---- its text and its JSON -----------------------------------------------------------------------------------------

const plain = (text) => text.replace(/↵\n|⇥\t|\s/g, " ").toLowerCase();
const texts = []; // what a search has read, one text per row
const textOf = (index) => {
  texts[index] ??= plain(cellsOf(JSON.parse(lines[index])).map((cell) => cell.text).join(""));
  return texts[index];
};

const decode = (row, cell) => {
  if (row.pictures.has(cell.start)) return cell.text;
  const hex = row.ids.slice(cell.start, cell.end).map((token) => vocabulary[token][1]).filter(Boolean);
  return new TextDecoder("utf-8", { ignoreBOM: true }).decode(
    new Uint8Array(hex.join(" ").split(" ").filter(Boolean).map((byte) => parseInt(byte, 16))),
  );
};

// As `sft-mask preview --json` writes it.
const asJson = (row, index) => {
  const [, tokens, trained, status] = overview[index];
  const shown = row.runs.map(() => "");
  row.cells.forEach((cell) => (shown[row.run[home(row, cell)]] += decode(row, cell)));
  return {
    name: overview[index][0], tokens, trained, status, lost: row.lost,
    runs: row.runs.map(([start, weight], number) => ({ start, end: endOf(row, number), weight, text: shown[number] })),
    parts: row.notes.map(([start, end, role, reason, turn]) => ({ start, end, role, turn, reason })),
  };
};
