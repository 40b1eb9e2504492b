// One round taken apart: what the coordinator did when, and each site's part in it.
import { chartWidth, h, s, table, renew } from "./dom.js";
import { outcome } from "./sites.js";
import { bytes, clock, interval, number, plainKind, short, span, MODELS } from "./words.js";

const NAME = 140, ROW = 24, HEAD = 26;
let wanted = null;  // null: the newest, and on with it
let loaded = null;  // {key, round}

function timeline(round, now) {
  const WIDTH = chartWidth();
  const open = [...round.steps].reverse().find(([, name]) => name === "open");
  const start = open ? open[2] : round.t;
  const steps = round.steps.filter(([, , time]) => time >= start);
  const running = ["opened", "collected", "aggregated", "evaluated"].includes(round.st) ? now : 0;
  const end = Math.max(...steps.map(([, , time]) => time), start + 0.001, running, ...round.cells.map((c) => start + (c.seconds || 0)));
  const x = (time) => NAME + ((time - start) / (end - start)) * (WIDTH - NAME - 16);
  const collected = steps.find(([, name]) => name === "collect")?.[2];
  const words = round.cells.map((c) => `${c.site}: ${c.outcome.replaceAll("_", " ")}${c.seconds ? `, trained ${span(c.seconds)}` : ""}`).join("; ");
  let before = -100;
  const flags = steps.map(([, name, time]) => {
    const at = x(time), label = at - before > 58;
    if (label) before = at;
    return [s("line", { class: "mark", x1: at, x2: at, y1: HEAD - 6, y2: HEAD + round.cells.length * ROW }), label ? s("text", { class: "tick", x: Math.min(at, WIDTH - 34), y: 12, "text-anchor": "middle" }, name) : null];
  });
  return s("svg", { viewBox: `0 0 ${WIDTH} ${HEAD + round.cells.length * ROW + 24}`, class: "chart", role: "img", "aria-labelledby": "line-title line-words" },
    s("title", { id: "line-title" }, `Round ${round.n} by site`), s("desc", { id: "line-words" }, words), flags,
    round.cells.map((cell, i) => {
      const top = HEAD + i * ROW, until = collected || end;
      const trained = Math.min(cell.seconds || 0, until - start);
      return [s("text", { class: "row-name", x: 0, y: top + 16 }, cell.site.length > 18 ? `${cell.site.slice(0, 17)}…` : cell.site),
        s("rect", { class: "wait", x: x(start), y: top + 5, width: Math.max(0, x(until) - x(start)), height: ROW - 9 }),
        trained ? s("rect", { class: `cell ${cell.outcome}`, x: x(start), y: top + 5, width: Math.max(1, x(start + trained) - x(start)), height: ROW - 9 }) : null];
    }),
    s("text", { class: "tick", x: NAME, y: HEAD + round.cells.length * ROW + 18 }, "0 s"),
    s("text", { class: "tick", x: WIDTH - 16, y: HEAD + round.cells.length * ROW + 18, "text-anchor": "end" }, span(end - start)));
}

export function pick(round) { wanted = round; }

export async function show(node, state, go, ask) {
  const numbers = state.rounds.filter((r) => r.n > 0).map((r) => r.n), last = numbers.at(-1);
  if (!last) { renew(node, h("h2", null, "Rounds"), h("p", { class: "quiet" }, "No round is open yet.")); return; }
  const n = wanted && numbers.includes(wanted) ? wanted : last;
  const line = state.rounds.find((r) => r.n === n), version = `${state.run}/${n}/${line.a}/${line.st}/${line.s}/${line.o}`;
  if (loaded?.version !== version) {
    const round = await ask(`/api/round?run=${encodeURIComponent(state.run)}&number=${n}`);
    if (!round) return;
    loaded = { version, round };
  }
  if (!node.isConnected || node.dataset.view !== "rounds") return;
  const round = loaded.round;
  const collected = round.steps.filter(([, name]) => name === "collect").at(-1)?.[2], opened = round.steps.filter(([, name]) => name === "open").at(-1)?.[2];
  const rows = round.cells.map((c) => [c.site, outcome(c.outcome), span(c.seconds), collected && opened && c.seconds !== null ? span(Math.max(0, collected - opened - c.seconds)) : "–",
    bytes(c.bytes_up), bytes(c.bytes_down), c.loss === null ? (state.head.private ? "private" : "–") : number(c.loss), c.epsilon === null ? "–" : number(c.epsilon, 2), c.norm === null ? "–" : number(c.norm), c.cosine === null ? "–" : number(c.cosine, 2), c.code || "–", c.reason || "–"]);
  const move = (to) => { wanted = to >= last ? null : Math.max(numbers[0], to); go("rounds"); };
  renew(node, h("h2", null, `Round ${n} of ${state.head.planned}`),
    h("p", { class: "controls" },
      h("button", { type: "button", "data-key": "before", disabled: n === numbers[0], onclick: () => move(n - 1) }, "Previous"),
      h("label", { for: "round-pick" }, "Round "),
      h("input", { id: "round-pick", "data-key": "round-pick", type: "number", min: numbers[0], max: last, value: n, onchange: (event) => move(Number(event.target.value) || last) }),
      h("button", { type: "button", "data-key": "after", disabled: n === last, onclick: () => move(n + 1) }, "Next"),
      h("button", { type: "button", "data-key": "newest", "aria-pressed": wanted === null ? "true" : "false", onclick: () => move(last) }, "Follow the newest")),
    h("dl", { class: "facts" },
      [["State", plainKind(round.st), round.a > 1 ? `attempt ${round.a}` : round.ph], ["Opened", clock(round.t, true), round.st === "opened" ? "open" : span(round.s)], ["Contributed", `${round.c} of ${round.cells.length}`, `quorum ${state.head.quorum}`],
        ["AUC", round.auc[state.head.score] ? interval(round.auc[state.head.score]) : "not measured", MODELS[state.head.score]],
        ["Checkpoint", short(round.after), round.before ? `from ${short(round.before)}` : ""]].map(([name, value, more]) => h("div", { class: "fact" }, h("dt", null, name), h("dd", null, value, h("span", { class: "quiet" }, ` ${more || ""}`))))),
    h("figure", null, timeline(round, state.now), h("figcaption", { class: "quiet" }, "Filled: training, as the site says. Pale: waiting, loading and transfer, until the coordinator had all replies. The journal keeps no finer phases.")),
    table(`Sites in round ${n}`, ["Site", "Outcome", "Training", "Waiting and transfer", "Sent", "Received", "Loss", "Epsilon", "Update's norm", "Cosine to the others", "Code", "Reason"], rows, { stack: true }),
    table("What the coordinator did", ["Time", "Step", "Attempt"], round.steps.map(([attempt, name, time]) => [clock(time, true), plainKind(name), String(attempt)])),
    h("p", { class: "quiet" }, "Norm and cosine are of what the coordinator saw: none where updates are summed securely. With privacy most of an update is noise, so that cosines lie near 0 for everybody."));
}
