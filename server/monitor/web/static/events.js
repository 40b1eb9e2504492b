// What happened, searchable, newest first; codes explain themselves.
import { h, renew, setText } from "./dom.js";
import { bytes, clock, plainKind } from "./words.js";

const SEVERITIES = { info: ["·", "note"], warning: ["▲", "warning"], error: ["✕", "error"] };
const HEADS = ["Time", "Severity", "Round", "Site", "What", "Code", "Words"];
const SHOWN = 100;
let codes = null, filter = { text: "", severity: "" }, older = [], more = true, timer = null;

function matches(event) {
  if (filter.severity === "warning" && event.severity === "info") return false;
  if (filter.severity === "error" && event.severity !== "error") return false;
  const data = Object.entries(event.data || {}).map(([k, v]) => `${k} ${v}`).join(" ");
  const line = `${event.round ? `round ${event.round}` : "study"} ${event.site || ""} ${plainKind(event.kind)} ${event.code || ""} ${event.text || ""} ${data}`.toLowerCase();
  return filter.text.toLowerCase().split(/\s+/).every((word) => line.includes(word));
}

function explain(code) {
  const words = codes?.[code];
  if (!words) return [code];
  return [h("details", { class: "code", "data-key": `code-${code}-${explain.count++}` }, h("summary", { "aria-label": `${code}: what it means` }, code), h("span", null, words))];
}
explain.count = 0;

// `code 41: ...` in a site's words is an exit code.
function text(said) {
  const found = /\bcode (\d{1,3})\b/.exec(said || "");
  return found && codes?.[found[1]] ? [said, " ", explain(found[1])] : [said || ""];
}

// One value of an event in words: seconds and bytes with their unit.
function words(key, v) {
  const name = plainKind(key.replace(/_s$/, ""));
  if (typeof v !== "number") return `${name} ${v}`;
  if (key.startsWith("bytes_")) return `${name} ${bytes(v)}`;
  return `${name} ${Number(v.toPrecision(4))}${key.endsWith("_s") ? " s" : ""}`;
}

function row(event) {
  const [icon, word] = SEVERITIES[event.severity] || SEVERITIES.info;
  const data = Object.entries(event.data || {}).map(([k, v]) => words(k, v)).join(", ");
  const cell = (i, ...children) => h("td", { role: "cell", "data-label": HEADS[i], class: [i === 2 ? "" : i === 6 ? "text wide" : "text", children[0] === "–" ? "none" : ""].join(" ").trim() || null }, children);
  return h("tr", { class: `severity-${event.severity}`, role: "row" }, h("th", { scope: "row", role: "rowheader" }, clock(event.time, true)),
    cell(1, h("span", null, h("span", { "aria-hidden": "true", class: "icon" }, icon), ` ${word}`)), cell(2, event.round ? String(event.round) : "–"),
    cell(3, event.site || "–"), cell(4, plainKind(event.kind)), cell(5, event.code ? explain(event.code) : "–"),
    cell(6, h("span", null, text(event.text), data ? h("span", { class: "quiet" }, ` ${data}`) : null)));
}

export async function show(node, state, go, ask) {
  codes = codes || (await ask("/api/codes"));
  if (!node.isConnected || node.dataset.view !== "events") return;
  if (!node.querySelector("#event-rows")) {
    older = []; more = true;
    const change = () => { clearTimeout(timer); timer = setTimeout(() => { older = []; more = true; fetchMore(node, state, ask); }, 150); };
    node.replaceChildren(h("h2", null, "Events"),
      h("p", { class: "controls" }, h("label", { for: "event-text" }, "Search "), h("input", { id: "event-text", type: "search", value: filter.text, oninput: (e) => { filter.text = e.target.value; change(); } }),
        h("label", { for: "event-severity" }, "Severity "), h("select", { id: "event-severity", onchange: (e) => { filter.severity = e.target.value; change(); } },
          [["", "all"], ["warning", "warnings and errors"], ["error", "errors"]].map(([v, w]) => h("option", { value: v, selected: filter.severity === v }, w)))),
      h("p", { class: "quiet", id: "event-count", role: "status" }),
      h("div", { class: "scroll tall", role: "region", "aria-label": "Events", tabindex: "0", "data-key": "events" }, h("table", { class: "stack", role: "table" }, h("caption", null, "Newest first"),
        h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, HEADS.map((x, i) => h("th", { scope: "col", role: "columnheader", class: i === 2 ? null : "text" }, x)))), h("tbody", { id: "event-rows", role: "rowgroup" }))),
      h("p", null, h("button", { type: "button", id: "event-more", onclick: () => fetchMore(node, state, ask) }, "Older events")));
  }
  draw(node, state);
}

async function fetchMore(node, state, ask) {
  const oldest = (older.length ? older : state.events).at(older.length ? -1 : 0)?.id || 0;
  const found = await ask(`/api/events?run=${encodeURIComponent(state.run)}&text=${encodeURIComponent(filter.text)}&severity=${filter.severity}&before=${oldest}`);
  if (!found) return;
  older = [...older, ...found.events];
  more = found.more;
  draw(node, state);
}

function draw(node, state) {
  const rows = node.querySelector("#event-rows");
  if (!rows) return;
  const fresh = [...state.events].reverse().filter(matches);
  const all = [...fresh, ...older];
  const shown = older.length ? all : all.slice(0, SHOWN);
  const mark = `${shown[0]?.id}/${shown.length}/${shown.at(-1)?.id}/${filter.text}/${filter.severity}`;
  node.querySelector("#event-more").hidden = !more || (state.events[0]?.id || 0) <= 1 && shown.length === all.length;
  setText(node.querySelector("#event-count"), shown.length ? `${shown.length} events shown` : "No event fits.");
  if (rows.dataset.mark === mark) return;
  rows.dataset.mark = mark;
  explain.count = 0;
  renew(rows, shown.map(row));
}
