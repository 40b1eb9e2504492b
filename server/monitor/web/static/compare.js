// Runs side by side: one curve each, and a table.
import { h, renew, table, details } from "./dom.js";
import { lines, legend } from "./charts.js";
import { STATUS, bytes, count, interval, number, outOf, span } from "./words.js";

const MOST = 6;
let chosen = null, known = new Map(), listed = [], asked = 0;

export async function show(node, state, go, ask) {
  if (Date.now() - asked > 4000 || listed.length !== state.runs.length) {
    asked = Date.now();
    listed = (await ask("/api/runs"))?.runs || listed;
  }
  chosen = chosen || new Set([state.run, ...listed.filter((one) => one.run !== state.run && one.started).slice(0, 1).map((one) => one.run)]);
  for (const run of chosen) {
    if (run === state.run) { known.set(run, state); continue; }
    const before = known.get(run);
    if (before && before.done) continue;
    const view = await ask(`/api/view?run=${encodeURIComponent(run)}`);
    if (view) known.set(run, { run, head: view.head, sites: view.sites, rounds: view.rounds, done: view.head.status === "complete" });
  }
  if (!node.isConnected || node.dataset.view !== "compare") return;
  draw(node, state, go, ask);
}

function draw(node, state, go, ask) {
  const runs = listed.map((one) => one.run).filter((run) => chosen.has(run)).map((run) => known.get(run)).filter(Boolean);
  const toggle = (run) => (event) => {
    if (event.target.checked) chosen.add(run); else chosen.delete(run);
    show(node, state, go, ask);
  };
  const boxes = h("fieldset", { class: "runs" }, h("legend", null, `Runs in this place (at most ${MOST} at a time)`), listed.map((one, i) => h("label", null,
    h("input", { type: "checkbox", "data-key": `run-${one.run}`, checked: chosen.has(one.run), disabled: !chosen.has(one.run) && chosen.size >= MOST, onchange: toggle(one.run) }),
    ` ${one.run} `, h("span", { class: "quiet" }, STATUS[one.status]?.word.toLowerCase() || ""))));
  const series = runs.map((run, i) => ({ name: run.run, label: run.run, className: `run-${i}`,
    points: run.rounds.filter((r) => r.auc[run.head.score]).map((r) => [r.n, ...r.auc[run.head.score]]) })).filter((one) => one.points.length);
  const rows = runs.map((run) => {
    const best = run.head.best, first = runs[0].head.best, spent = run.sites.map((x) => x.privacy?.epsilon || 0);
    return [run.run, STATUS[run.head.status]?.word || "–", outOf(run.head.closed, run.head.planned), best ? interval([best.auc.value, best.auc.low, best.auc.high]) : "–",
      best && first && run !== runs[0] ? `${best.auc.value >= first.auc.value ? "+" : "−"}${Math.abs(best.auc.value - first.auc.value).toFixed(3)}` : "–",
      run.head.test?.[run.head.score] ? interval(run.head.test[run.head.score]) : "–", !run.head.protocol_sha256 ? "–" : run.head.private ? number(Math.max(0, ...spent), 2) : "none",
      count(run.sites.length || null), run.head.strategy || "–", span(run.head.round_s), bytes(run.head.bytes_up + run.head.bytes_down)];
  });
  const parts = [h("h2", null, "Runs side by side"), boxes];
  if (series.length) {
    const chart = lines({ title: "AUC by round and run", series, yLabel: "AUC on selection", words: series.map((one) => `${one.label}: ${number(one.points.at(-1)[1])}`).join("; ") });
    parts.push(h("figure", null, chart.picture, h("figcaption", { class: "legend" }, legend(series).map((pair) => h("span", null, pair)))));
    const rounds = [...new Set(series.flatMap((one) => one.points.map((p) => p[0])))].sort((a, b) => b - a);
    parts.push(details("compare-table", "The same as a table", table("AUC by round", ["Round", ...series.map((one) => one.label)],
      rounds.slice(0, 500).map((n) => [String(n), ...series.map((one) => number(one.points.find((p) => p[0] === n)?.[1]))]))));
  }
  parts.push(table("Each run, the first as the measure", ["Run", "Status", "Rounds", "Best AUC", "Difference", "Test AUC", "Epsilon", "Sites", "Strategy", "A round takes", "Traffic"], rows, { stack: true }));
  parts.push(h("p", { class: "quiet" }, "Runs of other women or other sites are not to be compared: `mammofed simulate compare` checks that, and pairs the women."));
  renew(node, parts);
}
