// The table of extracted answers: search, sorting and paging.
const PAGE = 60;
const order = { by: null, up: true }; // by: null (order of the benchmark), "problem" or an arm
let rowsShown = PAGE;

const armsOf = (bench) => data.arms.filter((arm) => data.results.some((row) => row.bench === bench && row.arm === arm));

function matching() {
  const words = at("find").value.trim().toLowerCase(), moved = at("moved").checked;
  const rows = data.answers[state.bench].filter((row) => {
    const cells = Object.values(row.arms), reference = row.arms[data.reference].accuracy;
    const texts = [row.problem, row.answer, ...cells.flatMap((cell) => cell.answers.map((answer) => answer[0]))];
    const matches = texts.some((text) => (text ?? "none").toLowerCase().includes(words));
    return matches && (!moved || cells.some((cell) => cell.accuracy !== reference));
  });
  if (order.by === null) return rows;
  const value = (row) => (order.by === "problem" ? row.problem : row.arms[order.by].accuracy);
  const compare = (a, b) => (typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b);
  return rows.sort((a, b) => (order.up ? 1 : -1) * compare(value(a), value(b)));
}

function orderBy(column) {
  order.up = order.by === column ? !order.up : column === "problem";
  order.by = column;
  answerTable();
  at("answer-table").querySelector(`[data-column="${CSS.escape(column)}"]`).focus();
}

function heading(column, shown) {
  const sorted = order.by === column ? (order.up ? "ascending" : "descending") : "none";
  const arrow = html("span", { "aria-hidden": "true" }, { ascending: " ▲", descending: " ▼", none: "" }[sorted]);
  const button = { type: "button", "data-column": column, onclick: () => orderBy(column) };
  return html("th", { scope: "col", "aria-sort": sorted }, html("button", button, shown, arrow));
}

function answerCell(cell) {
  if (!cell) return html("td");
  const items = cell.answers.map(([answer, right, times, rule]) =>
    html("li", { class: right ? "right" : answer === null ? "none" : "wrong", title: rule && `graded by ${rule}` },
      html("span", { class: "sign", role: "img", "aria-label": right ? "correct" : "wrong" }, right ? "✓" : "✗"),
      html("span", { class: "value" }, answer ?? "none"),
      times > 1 ? html("span", { class: "times" }, `×${times}`) : null,
      rule && at("rules").checked ? html("span", { class: "rule" }, rule) : null));
  if (cell.more) items.push(html("li", { class: "none" }, `and ${cell.more} more`));
  return html("td", {}, html("ul", {}, ...items));
}

function problemCell(row) {
  const hasTraces = data.traces.some((group) => group.bench === state.bench && group.problem === row.problem);
  const link = { type: "button", class: "link", title: "Read its traces", onclick: () => openTrace(row.problem) };
  return html("th", { scope: "row" }, hasTraces ? html("button", link, row.problem) : row.problem);
}

function answerTable() {
  const rows = matching(), arms = armsOf(state.bench), all = data.answers[state.bench].length;
  at("answers-count").textContent = `${rows.length} of ${count(all, "problem")}`;
  at("more-answers").hidden = rows.length <= rowsShown;
  at("answer-table").replaceChildren(
    html("thead", {}, html("tr", {}, heading("problem", "problem"), html("th", { scope: "col" }, "correct answer"),
      ...arms.map((arm) => heading(arm, armName(arm))))),
    html("tbody", {}, ...rows.slice(0, rowsShown).map((row) => html("tr", {}, problemCell(row),
      html("td", { class: "value" }, row.answer ?? ""), ...arms.map((arm) => answerCell(row.arms[arm]))))));
}

function search() {
  rowsShown = PAGE;
  answerTable();
}
