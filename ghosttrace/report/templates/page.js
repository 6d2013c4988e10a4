// Registers the charts and the event listeners, then shows the page.
document.documentElement.classList.add("js");

chart("intervals", intervals);
chart("at-k", atK);
chart("differences", differences);
chart("sawtooth", sawtooth);
chart("peak-ratio", (width) => ratios(width, data.peak_ratio[state.bench], "KV peak without erasure / with erasure"));
chart("compression", (width) => ratios(width, data.compression[state.bench], "Block tokens / memento tokens"));

function showBench() {
  state.bench = at("bench").value;
  const name = data.benches.length > 1 ? state.bench : "";
  for (const element of document.querySelectorAll(".for-bench")) element.textContent = name;
  redraw();
  search();
  offerProblems();
}

for (const radio of document.querySelectorAll("input[name=measure]")) radio.addEventListener("change", redraw);
at("bench").addEventListener("change", showBench);
at("difference-arm").addEventListener("change", redraw);
at("find").addEventListener("input", search);
at("moved").addEventListener("change", search);
at("rules").addEventListener("change", answerTable);
at("more-answers").addEventListener("click", () => { rowsShown += PAGE; answerTable(); });
at("trace-problem").addEventListener("change", offerRepetitions);
at("trace-repetition").addEventListener("change", showTraces);
at("erased").addEventListener("change", showTraces);
at("previous").addEventListener("click", () => stepProblem(-1));
at("next").addEventListener("click", () => stepProblem(1));

at("bench").value = data.start;
offerArms();
showBench();

let width = document.documentElement.clientWidth;
new ResizeObserver(() => {
  if (width === document.documentElement.clientWidth) return;
  width = document.documentElement.clientWidth;
  redraw();
}).observe(document.documentElement);
