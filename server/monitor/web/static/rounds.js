// One round taken apart: what the coordinator did when, and each site's part in it.
import { chartWidth, h, s, table, renew } from "./dom.js";
import { outcome } from "./sites.js";
import { bytes, clock, interval, number, outOf, phaseWords, plainKind, short, span, BY_NAME, MODELS, PHASES } from "./words.js";

const NAME = 140, ROW = 24, HEAD = 26;
let wanted = null;  // null: the newest, and on with it
let loaded = null;  // {key, round}

// The parts of a site's bar: [phase, seconds]. Of a journal of an earlier release only the training is known, and of a
// failure, or a kept reply, whose phases are of another time, the trip alone.
function parts(cell) {
  const known = cell.phases;
  if (!known) return cell.seconds ? [["train", cell.seconds]] : [];
  if (known.send === null) return known.round_trip ? [["trip", known.round_trip]] : [];
  return Object.keys(PHASES).map((name) => [name, known[name]]).filter(([, seconds]) => seconds > 0);
}

const unknown = (cell) => parts(cell).every(([name]) => name === "trip");
const length = (cell) => parts(cell).reduce((sum, [, seconds]) => sum + seconds, 0);

function timeline(round, now) {
  const WIDTH = chartWidth();
  const open = [...round.steps].reverse().find(([, name]) => name === "open");
  const start = open ? open[2] : round.t;
  const steps = round.steps.filter(([, , time]) => time >= start);
  const running = ["opened", "collected", "aggregated", "evaluated"].includes(round.st) ? now : 0;
  const end = Math.max(...steps.map(([, , time]) => time), start + 0.001, running, ...round.cells.map((c) => start + length(c)));
  const x = (time) => NAME + ((time - start) / (end - start)) * (WIDTH - NAME - 16);
  const collected = steps.find(([, name]) => name === "collect")?.[2];
  const words = round.cells.map((c) => `${c.site}: ${c.outcome.replaceAll("_", " ")}${c.phases ? `, ${phaseWords(c.phases)}` : c.seconds ? `, trained ${span(c.seconds)}` : ""}`).join("; ");
  let before = -100;
  const flags = steps.map(([, name, time]) => {
    const at = x(time), label = at - before > 58;
    if (label) before = at;
    return [s("line", { class: "mark", x1: at, x2: at, y1: HEAD - 6, y2: HEAD + round.cells.length * ROW }), label ? s("text", { class: "tick", x: Math.min(at, WIDTH - 34), y: 12, "text-anchor": "middle" }, name) : null];
  });
  return s("svg", { viewBox: `0 0 ${WIDTH} ${HEAD + round.cells.length * ROW + 24}`, class: "chart", role: "img", "aria-labelledby": "line-title line-words" },
    s("title", { id: "line-title" }, `Round ${round.n} by site: seconds by phase`), s("desc", { id: "line-words" }, words), flags,
    round.cells.map((cell, i) => {
      const top = HEAD + i * ROW, until = Math.max(collected || end, start + length(cell));
      let from = start;
      const bars = parts(cell).map(([name, seconds]) => {
        const left = x(from);
        from += seconds;
        return s("rect", { class: `phase ${name}`, x: left, y: top + 5, width: Math.max(0.5, x(from) - left), height: ROW - 9 });
      });
      return [s("text", { class: "row-name", x: 0, y: top + 16 }, cell.site.length > 18 ? `${cell.site.slice(0, 17)}…` : cell.site),
        s("rect", { class: "wait", x: x(start), y: top + 5, width: Math.max(0, x(until) - x(start)), height: ROW - 9 }), bars,
        cell.outcome === "contributed" || !unknown(cell) ? null : s("text", { class: "tick", x: x(start) + 6, y: top + 16 }, BY_NAME[cell.outcome]?.words || cell.outcome)];
    }),
    s("text", { class: "tick", x: NAME, y: HEAD + round.cells.length * ROW + 18 }, "0 s"),
    s("text", { class: "tick", x: WIDTH - 16, y: HEAD + round.cells.length * ROW + 18, "text-anchor": "end" }, span(end - start)));
}

function key(shown) {
  const chip = (name, words) => h("li", null, h("span", { class: `chip phase-${name}`, "aria-hidden": "true" }), words);
  return h("ul", { class: "key", "aria-label": "What the bars mean" }, shown.filter((name) => name !== "trip").map((name) => chip(name, PHASES[name].words)),
    shown.includes("trip") ? chip("trip", "the round trip, of which no part is known: it failed, or its reply was kept from an earlier time") : null, chip("others", "waiting for the other sites"));
}

// The numbers behind the bars.
function phases(round, collected, opened) {
  const names = Object.keys(PHASES).filter((name) => name !== "mask" || round.cells.some((c) => c.phases?.mask > 0));
  const rows = round.cells.filter((c) => c.phases || c.seconds).map((c) => {
    const trip = c.phases?.round_trip ?? null, known = trip !== null && collected && opened;
    return [c.site, ...names.map((name) => span(c.phases ? c.phases[name] : name === "train" ? c.seconds : null)), span(trip), known ? span(Math.max(0, collected - opened - trip)) : "–"];
  });
  return table(`Seconds by phase of the sites that answered in round ${round.n}`, ["Site", ...names.map((name) => PHASES[name].head), "Round trip", "Waiting for the others"], rows, { stack: true, empty: "No site has answered yet." });
}

export function pick(round) { wanted = round; }

export async function show(node, state, go, ask) {
  const numbers = state.rounds.filter((r) => r.n > 0).map((r) => r.n), last = numbers.at(-1);
  if (!last) { renew(node, h("h2", null, "Rounds"), h("p", { class: "quiet" }, state.head.explores ? "An exploration has no rounds." : "No round is open yet.")); return; }
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
  const shown = [...Object.keys(PHASES), "trip"].filter((name) => round.cells.some((c) => parts(c).some(([part]) => part === name)));
  const rows = round.cells.map((c) => [c.site, outcome(c.outcome),
    bytes(c.bytes_up), bytes(c.bytes_down), c.loss === null ? (state.head.private ? "private" : "–") : number(c.loss), c.epsilon === null ? "–" : number(c.epsilon, 2), c.norm === null ? "–" : number(c.norm), c.cosine === null ? "–" : number(c.cosine, 2), c.code || "–", c.reason || "–"]);
  const move = (to) => { wanted = to >= last ? null : Math.max(numbers[0], to); go("rounds"); };
  renew(node, h("h2", null, `Round ${outOf(n, state.head.planned)}`),
    h("p", { class: "controls" },
      h("button", { type: "button", "data-key": "before", disabled: n === numbers[0], onclick: () => move(n - 1) }, "Previous"),
      h("label", { for: "round-pick" }, "Round "),
      h("input", { id: "round-pick", "data-key": "round-pick", type: "number", min: numbers[0], max: last, value: n, onchange: (event) => move(Number(event.target.value) || last) }),
      h("button", { type: "button", "data-key": "after", disabled: n === last, onclick: () => move(n + 1) }, "Next"),
      h("button", { type: "button", "data-key": "newest", "aria-pressed": wanted === null ? "true" : "false", onclick: () => move(last) }, "Follow the newest")),
    h("dl", { class: "facts" },
      [["State", plainKind(round.st), round.a > 1 ? `attempt ${round.a}` : round.ph], ["Opened", clock(round.t, true), round.st === "opened" ? "open" : span(round.s)], ["Contributed", `${round.c} of ${round.cells.length}`, state.head.quorum ? `quorum ${state.head.quorum}` : ""],
        ["AUC", round.auc[state.head.score] ? interval(round.auc[state.head.score]) : "not measured", MODELS[state.head.score]],
        ["Checkpoint", short(round.after), round.before ? `from ${short(round.before)}` : ""]].map(([name, value, more]) => h("div", { class: "fact" }, h("dt", null, name), h("dd", null, value, h("span", { class: "quiet" }, ` ${more || ""}`))))),
    h("figure", null, timeline(round, state.now), h("figcaption", null, key(shown),
      h("p", { class: "quiet" }, `Each site measures its own part; what is left of the round trip is sending, drawn in one piece at the end though it is there and back.${state.head.coarse_times ? " This study protects single women or hides single sites, so that seconds are told in steps of about 12 %." : ""}`))),
    phases(round, collected, opened),
    table(`Sites in round ${n}`, ["Site", "Outcome", "Sent", "Received", "Loss", "Epsilon", "Update's norm", "Cosine to the others", "Code", "Reason"], rows, { stack: true }),
    table("What the coordinator did", ["Time", "Step", "Attempt"], round.steps.map(([attempt, name, time]) => [clock(time, true), plainKind(name), String(attempt)])),
    h("p", { class: "quiet" }, "Norm and cosine are of what the coordinator saw: none where updates are summed securely. With privacy most of an update is noise, so that cosines lie near 0 for everybody."));
}
