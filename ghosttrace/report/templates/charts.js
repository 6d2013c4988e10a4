// The charts of the page. Each chart function takes a width in pixels and returns an <svg>.
const LABELS = 132; // width of the arm names

const rowsOf = (bench) => data.results.filter((row) => row.bench === bench);
const whole = (number) => number.toLocaleString("en");

/** Grid lines and labels of a horizontal axis at these values. */
const across = (x, values, top, bottom, shown) =>
  values.flatMap((value) => [
    line(x(value), top, x(value), bottom, value ? "grid" : "axis"),
    text(x(value), bottom + 16, shown(value), "tick middle"),
  ]);

/** Grid lines and labels of a vertical axis at these values. */
const up = (y, values, left, right, shown) =>
  values.flatMap((value) => [
    line(left, y(value), right, y(value), value ? "grid" : "axis"),
    text(left - 6, y(value) + 4, shown(value), "tick end"),
  ]);

const signed = (value) => (value ? points(value).replace(".0", "") : "0");

/** Accuracy or effect of every arm on every benchmark, with intervals. */
function intervals(width) {
  const measure = document.querySelector("input[name=measure]:checked").value, plain = measure === "accuracy";
  const step = 22, head = data.benches.length > 1 ? 24 : 6, foot = 26;
  const tall = data.arms.length * step, height = head + tall + foot;
  const cells = grid(width - LABELS, data.benches.length, 170, 32);
  const ends = data.results.flatMap((row) => [row[`${measure}_low`], row[`${measure}_high`]]);
  const [low, high] = plain ? [0, 1] : [Math.min(0, ...ends), Math.max(0, ...ends)];
  const marks = data.benches.flatMap((bench, i) => {
    const left = LABELS + cells.x(i), top = cells.row(i) * height + head;
    const x = scale(low, high, left + 6, left + cells.size - 12);
    const name = data.benches.length > 1 ? [text(left + 6, top - 11, bench, "name")] : [];
    const numbers = ticks(low, high, Math.max(2, cells.size / 62));
    const ceiling = plain ? data.ceilings[bench] : null;
    return [
      ...name,
      ...across(x, numbers, top, top + tall, plain ? (value) => String(Math.round(100 * value)) : signed),
      ...(ceiling == null ? [] : [line(x(ceiling), top, x(ceiling), top + tall, "ceiling")]),
      ...rowsOf(bench).flatMap((row) => {
        const y = top + (data.arms.indexOf(row.arm) + 0.5) * step;
        const label = i % cells.columns ? [] : [text(LABELS - 10, y + 4, row.arm, "end")];
        return [...label, whisker(row, measure, x, y, { x: left, y: y - step / 2, width: cells.size, height: step })];
      }),
    ];
  });
  const ceilings = plain && data.benches.some((bench) => data.ceilings[bench] != null);
  at("intervals-caption").textContent =
    (plain ? "Accuracy in %" : `Accuracy minus ${data.reference}'s in points`) + ", with 95 % intervals over problems."
    + (ceilings ? " Dashed: ceiling of a sealed cache." : "");
  return canvas(width, cells.rows * height, `${measure} by arm and benchmark, as in the table below`, ...marks);
}

/** A dot with its interval; hovering over the rectangle `target` shows the numbers. */
function whisker(row, measure, x, y, target) {
  const label = measure === "accuracy" ? `${percent(row.accuracy)} %` : `${points(row.effect)} points`;
  return svg("g", colour(row.arm),
    line(x(row[`${measure}_low`]), y, x(row[`${measure}_high`]), y, "whisker"),
    svg("circle", { cx: x(row[measure]), cy: y, r: 4, class: "dot" }),
    svg("rect", { ...target, class: "target" }, hint(`${row.bench}, ${row.arm}: ${label}`)));
}

/** pass@k and maj@k of the chosen benchmark against k, on a logarithmic axis. */
function atK(width) {
  const rows = data.at_k.filter((row) => row.bench === state.bench), ks = [...new Set(rows.map((row) => row.k))];
  const arms = data.arms.filter((arm) => rows.some((row) => row.arm === arm));
  const cells = grid(width, 2, 260, 28), height = 236, keys = legend(width, arms, cells.rows * height);
  const marks = ["pass", "maj"].flatMap((name, i) => {
    const left = cells.x(i) + 34, right = cells.x(i) + cells.size, top = cells.row(i) * height + 26, bottom = top + 170;
    const log = scale(0, Math.log2(Math.max(...ks)), left + 6, right - 10), x = (k) => log(Math.log2(k));
    const y = scale(0, 1, bottom, top);
    return [
      text(left, top - 12, `${name}@k, %`, "name"),
      ...up(y, [0, 0.25, 0.5, 0.75, 1], left, right, (value) => String(100 * value)),
      ...ks.map((k) => text(x(k), bottom + 16, String(k), "tick middle")),
      ...arms.map((arm) => curveAtK(arm, name, rows.filter((row) => row.arm === arm), x, y)),
    ];
  });
  const label = `pass@k and maj@k on ${state.bench}, as in the table below`;
  return canvas(width, cells.rows * height + keys.height, label, ...marks, ...keys.marks);
}

function curveAtK(arm, name, rows, x, y) {
  const path = rows.map((row) => `${x(row.k)},${y(row[`${name}_at_k`])}`).join(" ");
  const dots = rows.flatMap((row) => [
    line(x(row.k), y(row[`${name}_low`]), x(row.k), y(row[`${name}_high`]), "faint"),
    svg("circle", { cx: x(row.k), cy: y(row[`${name}_at_k`]), r: 3, class: "dot" },
      hint(`${arm}, k = ${row.k}: ${percent(row[`${name}_at_k`])} %`)),
  ]);
  return svg("g", colour(arm), svg("polyline", { points: path, class: "curve" }), ...dots);
}

/** A legend of arms with their colours, in rows below a chart. */
function legend(width, arms, top) {
  let x = 0, y = top + 12;
  const marks = arms.map((arm) => {
    const keyWidth = 34 + 6.2 * arm.length;
    if (x + keyWidth > width) [x, y] = [0, y + 20];
    const dot = svg("circle", { cx: x + 6, cy: y - 4, r: 4, class: "dot" });
    const key = svg("g", colour(arm), dot, text(x + 16, y, arm));
    x += keyWidth;
    return key;
  });
  return { marks, height: y - top + 10 };
}

/** Accuracy of the chosen arm minus that of the reference by problem, from the lowest to the highest. */
function differences(width) {
  const arm = at("difference-arm").value, accuracy = (row, name) => row.arms[name]?.accuracy ?? 0;
  const sorted = data.answers[state.bench]
    .map((row) => ({ row, by: accuracy(row, arm) - accuracy(row, data.reference) }))
    .sort((a, b) => a.by - b.by);
  const limit = Math.ceil(10 * Math.max(0.1, ...sorted.map(({ by }) => Math.abs(by))) - 1e-9) / 10;
  const height = 190, left = 44, x = scale(0, sorted.length, left + 2, width), y = scale(-limit, limit, height - 8, 8);
  const slot = x(1) - x(0), thick = slot < 6 ? slot : Math.min(0.82 * slot, 26);
  const bars = sorted.map(({ row, by }, i) => {
    const bar = by ? { y: y(Math.max(by, 0)), height: Math.abs(y(by) - y(0)) } : { y: y(0) - 1.5, height: 3 };
    const kind = colour(by > 0 ? data.reference : arm, by ? "fill" : "still");
    return svg("rect", { x: x(i + 0.5) - thick / 2, width: thick, ...bar, ...kind },
      hint(`${row.problem}: ${percent(accuracy(row, data.reference))} → ${percent(accuracy(row, arm))} %`));
  });
  const worse = sorted.filter(({ by }) => by < 0).length, better = sorted.filter(({ by }) => by > 0).length;
  const caption = `${arm} minus ${data.reference}, in points: ${worse} worse, ${better} better, `
    + `${sorted.length - worse - better} unchanged, of ${count(sorted.length, "problem")}.`;
  at("differences-caption").textContent = `${caption} The table of answers below lists every problem.`;
  const numbers = [-1, -0.5, 0, 0.5, 1].map((share) => share * limit);
  return canvas(width, height, caption, ...up(y, numbers, left, width, signed), ...bars);
}

/** KV tokens held at each step of many traces: thin lines, one panel per arm. */
function sawtooth(width) {
  const groups = data.traces.filter((group) => group.bench === state.bench).slice(0, 60);
  const curvesOf = (arm) => groups.filter((group) => group.arms[arm]).map((group) => group.arms[arm].curve);
  const arms = data.arms.filter((arm) => curvesOf(arm).length), all = arms.flatMap(curvesOf).flat();
  const last = Math.max(1, ...all.map(([step]) => step)), high = Math.max(1, ...all.map(([, held]) => held));
  const cells = grid(width, arms.length, 230, 26), height = 172;
  const marks = arms.flatMap((arm, i) => {
    const left = cells.x(i) + 40, right = cells.x(i) + cells.size, top = cells.row(i) * height + 24, bottom = top + 112;
    const x = scale(0, last, left, right), y = scale(0, high, bottom, top), curves = curvesOf(arm);
    const peaks = curves.map((curve) => Math.max(...curve.map(([, held]) => held))).sort((a, b) => a - b);
    const lines = curves.map((curve) => curve.map(([step, held]) => `${x(step).toFixed(1)},${y(held).toFixed(1)}`));
    return [
      text(left, top - 10, arm, "name"),
      text(right, top - 10, `peak ${whole(peaks[peaks.length >> 1])}`, "tick end"),
      ...up(y, ticks(0, high, 3), left, right, whole),
      ...ticks(0, last, 3).map((tick) => text(x(tick), bottom + 16, whole(tick), "tick middle")),
      line(x(0), y(1), x(Math.min(last, high - 1)), y(Math.min(last + 1, high)), "plain"),
      svg("g", { ...colour(arm), "stroke-opacity": clip(5 / curves.length, 0.15, 0.8) },
        ...lines.map((corners) => svg("polyline", { class: "trace", points: corners.join(" ") }))),
    ];
  });
  const caption = `${count(groups.length, "trace")} per arm. Horizontal: steps (prompt and response); `
    + "vertical: KV tokens held. Peak: median over traces.";
  at("sawtooth-caption").textContent = caption;
  return canvas(width, cells.rows * height, `Sawtooth of KV tokens by arm. ${caption}`, ...marks);
}

/** Quantiles (5, 25, 50, 75, 95 %) of a ratio, one row per arm. */
function ratios(width, quantiles, label) {
  const arms = data.arms.filter((arm) => quantiles?.[arm]), step = 24, bottom = arms.length * step;
  const high = Math.max(1, ...arms.map((arm) => quantiles[arm][4])), x = scale(0, high, LABELS, width - 52);
  const marks = arms.flatMap((arm, i) => {
    const y = (i + 0.5) * step, [lowest, lower, median, upper, highest] = quantiles[arm];
    return [
      text(LABELS - 10, y + 4, arm, "end"),
      text(width, y + 4, `${median.toFixed(2)}×`, "end"),
      svg("g", colour(arm),
        line(x(lowest), y, x(highest), y, "whisker thin"), line(x(lower), y, x(upper), y, "whisker thick"),
        svg("circle", { cx: x(median), cy: y, r: 4, class: "dot" })),
    ];
  });
  const numbers = across(x, ticks(0, high, clip(width / 90, 2, 6)), 0, bottom, (value) => `${+value.toFixed(2)}×`);
  const medians = arms.map((arm) => `${arm} ${quantiles[arm][2].toFixed(2)}`).join(", ") || "none";
  return canvas(width, bottom + 24, `${label} by arm; medians: ${medians}`,
    ...numbers, line(x(1), 0, x(1), bottom, "ceiling"), ...marks);
}
