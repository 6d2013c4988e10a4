// Elements, scales and axes. Text is inserted only as text nodes, so that model output is never parsed as HTML.
const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);

function grow(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== null && value !== false) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}
const html = (tag, attributes = {}, ...children) => grow(document.createElement(tag), attributes, children);
const svg = (tag, attributes = {}, ...children) =>
  grow(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

const percent = (value) => (100 * value).toFixed(1);
const points = (value) => {
  const tenths = Math.round(1000 * value) / 10;
  return (tenths < 0 ? "−" : "+") + Math.abs(tenths).toFixed(1);
};
const count = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
const clip = (value, low, high) => Math.min(high, Math.max(low, value));

const scale = (low, high, from, to) => (value) => from + ((value - low) / (high - low || 1)) * (to - from);

/** About `many` round numbers from `low` to `high`. */
function ticks(low, high, many) {
  const rough = (high - low) / many || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.999);
  const values = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9; n++) values.push(n * step + 0); // + 0 avoids -0
  return values;
}

/** An <svg> of this size; `label` is its text for screen readers. */
const canvas = (width, height, label, ...children) =>
  svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label }, ...children);

const line = (x1, y1, x2, y2, kind, more = {}) => svg("line", { x1, y1, x2, y2, class: kind, ...more });
const text = (x, y, content, kind = "", more = {}) => svg("text", { x, y, class: kind, ...more }, content);
const hint = (content) => svg("title", {}, content);

/** Attributes that give an element the colour of an arm; the style sheet adapts it to light and dark mode. */
const colour = (arm, kind = "") => ({ class: `arm ${kind}`, style: `--c: ${data.colours[arm] ?? "#999999"}` });

const armName = (arm) => html("span", colour(arm), html("i", { class: "swatch" }), arm);

/** Layout of `n` small charts, each at least `minimum` pixels wide, in rows of equal length. */
function grid(width, n, minimum, gap = 18) {
  const maxColumns = clip(Math.floor((width + gap) / (minimum + gap)), 1, n);
  const columns = Math.ceil(n / Math.ceil(n / maxColumns));
  const size = (width - gap * (columns - 1)) / columns;
  const x = (i) => (i % columns) * (size + gap), row = (i) => Math.floor(i / columns);
  return { columns, rows: Math.ceil(n / columns), size, x, row };
}

const charts = [];

/** Register a chart that is drawn into an element on every `redraw`. */
function chart(id, draw) {
  const box = at(id);
  if (!box) return;
  charts.push(() => {
    if (box.clientWidth) box.replaceChildren(draw(box.clientWidth)); // a page that is being closed has no width
  });
}

function redraw() {
  for (const drawChart of charts) drawChart();
}

const state = { bench: data.start };
