// The first view: how it stands, the curves, what was kept.
import { h, details, table, renew } from "./dom.js";
import { lines, legend } from "./charts.js";
import { MODELS, bytes, clock, count, interval, number, outOf, short, span } from "./words.js";

export function seriesOf(rounds) {
  return Object.entries(MODELS).map(([model, label]) => ({
    name: model, label, className: model, band: model === "fused",
    points: rounds.filter((r) => r.auc[model]).map((r) => [r.n, ...r.auc[model]]),
  })).filter((one) => one.points.length);
}

const fact = (name, value, more) => h("div", { class: "fact" }, h("dt", null, name), h("dd", null, value, more ? h("span", { class: "quiet" }, ` ${more}`) : null));

export function facts(state) {
  if (state.head.explores) return h("dl", { class: "facts" }, fact("Sites", count(state.sites.length), `quorum ${state.head.quorum}`),
    fact("Privacy", state.head.private ? "patient-level" : "none", state.head.private ? "charged in each site's ledger" : "the sum is exact"));
  const head = state.head, best = head.best, last = state.rounds.filter((r) => r.st === "closed").at(-1);
  return h("dl", { class: "facts" },
    fact("Round", outOf(head.round, head.planned), head.attempt > 1 ? `attempt ${head.attempt}` : head.phase),
    fact(last ? `Sites in round ${last.n}` : "Sites", last ? outOf(last.c, state.sites.length) : outOf("–", state.sites.length), head.quorum ? `quorum ${head.quorum}` : ""),
    fact(best?.chosen ? "Chosen checkpoint" : "Best checkpoint", best ? `round ${best.round}` : "–", best ? `AUC ${interval([best.auc.value, best.auc.low, best.auc.high])}` : ""),
    fact("A round takes", span(head.round_s), head.ends ? `ends about ${clock(head.ends)}` : ""),
    fact("Traffic", bytes(head.bytes_up + head.bytes_down), `${bytes(head.bytes_up)} from ${head.member ? head.member.name : "sites"}`),
    fact("Privacy", !head.protocol_sha256 ? "not known" : head.private ? "patient-level" : "none", !head.protocol_sha256 ? "the protocol cannot be read" : head.private ? `largest epsilon ${number(Math.max(0, ...state.sites.map((x) => x.privacy?.epsilon || 0)), 2)}` : "updates are not noised"));
}

export function show(node, state) {
  const rounds = state.rounds, series = seriesOf(rounds);
  const models = Object.keys(MODELS).filter((m) => rounds.some((r) => r.auc[m]));
  const words = models.map((m) => `${MODELS[m]} ${interval(rounds.filter((r) => r.auc[m]).at(-1).auc[m])}`).join("; ");
  const rows = [...rounds].reverse().filter((r) => Object.keys(r.auc).length).map((r) => [r.n === 0 ? "initial" : String(r.n), ...models.map((m) => interval(r.auc[m]))]);
  const parts = [facts(state)];
  if (state.head.explores) parts.push(h("p", null, "An exploration counts women before a study: it has no rounds, and no model is trained or tested. `mammofed server explore show` prints the counts."));
  else parts.push(h("h2", null, "Held-out AUC by round"));
  if (series.length) {
    const best = state.head.best, newest = rounds.at(-1).n;  // early in a long study the curve is not a dot at the edge
    const chart = lines({ title: "AUC by round", series, yLabel: "AUC on selection", xMax: Math.min(state.head.planned, Math.max(10, 2 * newest)),
      words: `At the newest round: ${words}.`, marks: best ? [{ x: best.round, label: best.chosen ? "chosen" : "best" }] : [] });
    const readout = h("p", { class: "quiet readout" }, `Newest: ${words}.${series[0].points.some((p) => p[2] !== null) ? " The band is the fused model's 95 % interval." : ""}`);
    chart.picture.addEventListener("pointermove", (event) => {
      const n = chart.nearest(event), round = rounds.find((r) => r.n === n);
      if (round) readout.textContent = `Round ${n}: ${models.map((m) => `${MODELS[m]} ${interval(round.auc[m])}`).join("; ")}`;
    });
    parts.push(h("figure", null, chart.picture, h("figcaption", { class: "legend" }, legend(series).map((pair) => h("span", null, pair))), readout),
      details("auc-table", "The same as a table", table("AUC on selection by round, newest first", ["Round", ...models.map((m) => MODELS[m])], rows.slice(0, 500))));
  } else if (!state.head.explores) parts.push(h("p", { class: "quiet" }, "Nothing is measured yet."));
  const test = Object.entries(state.head.test || {});
  if (test.length) {
    parts.push(h("h2", null, "The held-out test, opened once"), table("AUC of the chosen model on the test split", ["Model", "AUC (95 %)"], test.map(([m, auc]) => [MODELS[m] || m, interval(auc)])));
  }
  const head = state.head;
  parts.push(h("h2", null, "This study"), h("dl", { class: "plain" },
    [["Started", clock(head.started)], ["Last step", clock(head.last_step, true)], ["Strategy", head.strategy], ["Release", head.release],
      ["Protocol", short(head.protocol_sha256)], ["Deadline of a round", span(head.deadline_s)], ...(head.member ? [] : [["Run directory", head.run]])].map(([name, value]) => [h("dt", null, name), h("dd", null, value || "–")])));
  renew(node, parts);
}
