// The trace reader: the responses to one problem side by side, one column per arm.
const groupsOf = (bench) => data.traces.filter((group) => group.bench === bench);
const chosenArms = () => [...document.querySelectorAll("#trace-arms input:checked")].map((box) => box.value);
const repetitionsOf = (problem) => groupsOf(state.bench).filter((group) => group.problem === problem);
const chosenGroup = () =>
  repetitionsOf(at("trace-problem").value).find((group) => String(group.repetition) === at("trace-repetition").value);

const fill = (select, values) => select.replaceChildren(...values.map((value) => html("option", {}, String(value))));

/** Fill the list of problems with those of the benchmark that have traces on the page. */
function offerProblems() {
  fill(at("trace-problem"), [...new Set(groupsOf(state.bench).map((group) => group.problem))]);
  offerRepetitions();
}

function offerRepetitions() {
  fill(at("trace-repetition"), repetitionsOf(at("trace-problem").value).map((group) => group.repetition));
  showTraces();
}

function offerArms() {
  const first = [data.reference, data.main ?? data.arms[1]];
  const boxes = data.arms.map((arm) => {
    const box = { type: "checkbox", value: arm, checked: first.includes(arm), onchange: showTraces };
    return html("label", {}, html("input", box), armName(arm));
  });
  at("trace-arms").append(...boxes);
}

function openTrace(problem) {
  at("trace-problem").value = problem;
  offerRepetitions();
  at("traces").scrollIntoView();
  at("trace-problem").focus({ preventScroll: true });
}

function stepProblem(by) {
  at("trace-problem").selectedIndex += by;
  offerRepetitions();
}

const joined = (box) => box[2].map((piece) => piece[0]).join("");
const textOf = (trace) => trace.boxes.map(joined).join("");

/** The first index at which two texts differ, in UTF-16 units, never inside a surrogate pair. */
function divergenceIndex(first, second) {
  let index = 0;
  while (index < Math.min(first.length, second.length) && first[index] === second[index]) index++;
  return index && /[\uD800-\uDBFF]/.test(second[index - 1]) ? index - 1 : index;
}

/** The range [from, to] of the extracted answer in the final text, or null. */
function answerRange(text, extracted) {
  if (!extracted) return null;
  const boxed = text.lastIndexOf(`boxed{${extracted}`);
  const from = boxed >= 0 ? boxed + 6 : text.lastIndexOf(extracted);
  return from < 0 ? null : [from, from + extracted.length];
}

const divergenceText = (trace) => `diverges from ${data.reference} at token ${whole(trace.first_difference + 1)}`;

/** The marks of a response: its divergence from the reference (an inserted node) and its answer. */
function marksOf(arm, trace, reference) {
  const marks = [], response = textOf(trace), expected = textOf(reference);
  if (arm !== data.reference && response !== expected) {
    const from = divergenceIndex(expected, response);
    marks.push({ from, to: from, node: html("span", { class: "divergence" }, divergenceText(trace)) });
  }
  const final = trace.boxes.length ? joined(trace.boxes.at(-1)) : "", begin = response.length - final.length;
  const range = answerRange(final, trace.extracted), kind = trace.correct ? "right" : "wrong";
  if (range) marks.push({ from: begin + range[0], to: begin + range[1], kind });
  return marks;
}

/** The nodes of a piece of text that begins at index `begin`, with the marks inside it. */
function pieceNodes(piece, begin, marks) {
  const cuts = marks.flatMap((mark) => [mark.from, mark.to]).map((index) => clip(index - begin, 0, piece.length));
  const bounds = [...new Set([0, ...cuts, piece.length])].sort((a, b) => a - b);
  return bounds.flatMap((from, i) => {
    const inserted = marks.filter((mark) => mark.node && mark.from === begin + from && !mark.node.parentNode);
    const shown = piece.slice(from, bounds[i + 1] ?? from);
    const answer = marks.find((mark) => mark.kind && mark.from <= begin + from && begin + from < mark.to);
    return [...inserted.map((mark) => mark.node), shown && answer ? html("mark", { class: answer.kind }, shown) : shown];
  });
}

/** One part of a response with its label. */
function boxNode([label, tokens, pieces], begin, marks) {
  const inside = pieces.filter(([, , delimiter]) => !delimiter).map(([, pieceErased]) => pieceErased);
  const some = inside.includes(true), erased = some && !inside.includes(false);
  const kind = ["block", "memento", "answer"].find((name) => label.includes(name)) ?? "text";
  const state = erased ? "erased" : some ? "partly erased" : null;
  const heading = [label, tokens ? count(tokens, "token") : null, state].filter(Boolean).join(" · ");
  const body = html("p");
  for (const [piece, pieceErased, delimiter, leftAfter] of pieces) {
    const classes = `${pieceErased ? "erased-text" : ""} ${delimiter ? "delimiter" : ""}`.trim();
    const title = leftAfter === null ? null : `left after ${count(leftAfter, "token")}`;
    body.append(html("span", { class: classes || null, title }, ...pieceNodes(piece, begin, marks)));
    begin += piece.length;
  }
  return html("section", { class: `box ${kind}${erased ? " erased" : ""}` }, html("h4", {}, heading), body);
}

/** The divergence of an arm from the reference, as a link if the text shows it. */
function divergenceLine(arm, trace, node) {
  if (arm === data.reference) return "reference";
  if (trace.first_difference === null) return `same tokens as ${data.reference}`;
  const scroll = () => node.scrollIntoView({ block: "center" });
  const label = divergenceText(trace);
  return node ? html("button", { type: "button", class: "link", onclick: scroll }, label) : label;
}

/** The small sawtooth of one trace, on scales that all columns share. */
function spark(arm, trace, last, high) {
  const x = scale(0, last, 1, 159), y = scale(0, high, 35, 3);
  const corners = trace.curve.map(([step, held]) => `${x(step)},${y(held)}`).join(" ");
  return canvas(160, 38, `KV tokens held, at most ${trace.peak_kv_tokens}`,
    line(1, 35, 159, 35, "axis"), svg("g", colour(arm), svg("polyline", { class: "trace", points: corners })));
}

function columnHead(arm, trace, ends, node) {
  const verdict = html("p", { class: `verdict ${trace.correct ? "right" : "wrong"}` },
    html("strong", {}, trace.correct ? "✓ correct: " : "✗ wrong: "), trace.extracted ?? "no answer found",
    trace.correct ? null : ` (correct: ${trace.answer})`);
  const facts = [
    count(trace.response_tokens, "token"),
    `KV peak ${whole(trace.peak_kv_tokens)}`,
    trace.finish === "length" && "truncated at the length limit",
    trace.rule && `graded by ${trace.rule}`,
    trace.donor_answer !== null && `the donor's answer is ${trace.donor_answer}`,
  ];
  return html("header", {}, html("h3", {}, armName(arm)), verdict,
    html("p", { class: "small" }, divergenceLine(arm, trace, node)),
    html("p", { class: "small" }, facts.filter(Boolean).join(" · ")), spark(arm, trace, ...ends));
}

function column(arm, trace, reference, ends) {
  const marks = marksOf(arm, trace, reference), head = columnHead(arm, trace, ends, marks.find((m) => m.node)?.node);
  const article = html("article", { "aria-label": arm }, head);
  let begin = 0;
  for (const box of trace.boxes) {
    article.append(boxNode(box, begin, marks));
    begin += joined(box).length;
  }
  return article;
}

function showTraces() {
  const group = chosenGroup(), arms = chosenArms().filter((arm) => group?.arms[arm]);
  const corners = arms.flatMap((arm) => group.arms[arm].curve), columns = at("columns"), select = at("trace-problem");
  const ends = [0, 1].map((axis) => Math.max(...corners.map((corner) => corner[axis])));
  columns.dataset.erased = at("erased").value;
  columns.style.setProperty("--columns", arms.length);
  columns.style.setProperty("--rows", 1 + Math.max(0, ...arms.map((arm) => group.arms[arm].boxes.length)));
  columns.replaceChildren(...arms.map((arm) => column(arm, group.arms[arm], group.arms[data.reference], ends)));
  at("trace-prompt").hidden = !group?.prompt;
  at("trace-prompt").querySelector(".prompt").textContent = group?.prompt ?? "";
  at("previous").disabled = select.selectedIndex <= 0;
  at("next").disabled = select.selectedIndex >= select.options.length - 1;
}
