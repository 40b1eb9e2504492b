// Keeps one study's state up to date over server-sent events, and hands it to the view that is open.
import { byId, h, renew, setText } from "./dom.js";
import { showMember } from "./member.js";
import { STATUS } from "./words.js";
import * as study from "./study.js";
import * as sites from "./sites.js";
import * as privacy from "./privacy.js";
import * as rounds from "./rounds.js";
import * as events from "./events.js";
import * as compare from "./compare.js";

const VIEWS = { study, sites, privacy, rounds, events, compare };
const MAX_EVENTS = 2000, MOST_FRESH = 3;
const panel = byId("panel"), tabs = [...byId("tabs").querySelectorAll("[role=tab]")];
const state = { run: null, runs: [], head: {}, names: [], sites: [], rounds: [], events: [], now: 0, cursor: "0.0" };
let source = null, open = "study", drawing = false, again = false, fresh = [];

async function ask(path) {
  try {
    const answer = await fetch(path, { headers: { Accept: "application/json" } });
    return answer.ok ? await answer.json() : null;
  } catch { return null; }
}

function take(message) {
  if (message.whole) { state.rounds = []; state.events = []; }
  Object.assign(state.head, message.head);
  if (message.names) { state.names = message.names; state.sites = state.sites.filter((site) => message.names.includes(site.name)); }
  const byName = new Map(state.sites.map((site) => [site.name, site]));
  for (const site of message.sites) byName.set(site.name, { ...byName.get(site.name), ...site });
  state.sites = state.names.map((name) => byName.get(name)).filter(Boolean);
  if (message.rounds.length) {
    const byNumber = new Map([...state.rounds, ...message.rounds].map((round) => [round.n, round]));
    state.rounds = [...byNumber.values()].sort((a, b) => a.n - b.n);
  }
  const last = state.events.at(-1)?.id || 0;
  state.events = [...state.events, ...message.events.filter((event) => event.id > last)].slice(-MAX_EVENTS);
  state.now = message.now; state.cursor = message.cursor;
  draw();
}

// The sentence without the word that stands beside it.
function besideWord({ status, sentence = "" }) {
  const rest = sentence.slice((status || "").length);
  return status && sentence.startsWith(status) && /^[: ]/.test(rest) ? rest.replace(/^:? +/, "") : sentence;
}

function header() {
  const head = state.head, status = STATUS[head.status] || { icon: "…", word: "Looking" };
  setText(byId("study-name"), head.name || "monitor");
  setText(byId("word"), `${status.icon} ${status.word}`);
  setText(byId("sentence"), besideWord(head));
  document.body.dataset.status = head.status || "";
  const title = `${status.word}: ${head.name || "MammoFed"}${head.planned && !head.explores ? ` ${head.closed}/${head.planned}` : ""}`;
  if (document.title !== title) document.title = title;
  const bar = byId("progress");
  bar.hidden = Boolean(head.explores);  // no rounds
  bar.setAttribute("aria-valuemax", head.planned || 1); bar.setAttribute("aria-valuenow", head.closed || 0);
  bar.setAttribute("aria-valuetext", `${head.closed || 0} of ${head.planned || 0} rounds closed`);
  byId("done").style.width = `${head.planned ? (100 * head.closed) / head.planned : 0}%`;
  showMember(head.member);
  const alarms = byId("alarms"), list = head.alarms || [];
  alarms.hidden = !list.length;
  renew(alarms, list.map((alarm) => h("li", { class: `alarm-${alarm.severity}` }, h("strong", null, { error: "✕ ", warning: "▲ " }[alarm.severity] || "· ", alarm.rule.replaceAll("_", " ")), " ", alarm.text)));
}

async function draw() {
  if (drawing) { again = true; return; }
  drawing = true;
  try {
    header();
    if (panel.dataset.view !== open) { panel.replaceChildren(); panel.dataset.view = open; }
    if (!state.head.status) return;
    await VIEWS[open].show(panel, state, go, ask);
    panel.dataset.drawn = `${open} ${state.cursor}`;
  } finally { drawing = false; }
  if (again) { again = false; draw(); }
}

function go(view, round) {
  if (round) rounds.pick(round);
  if (!VIEWS[view]) return;
  open = view;
  for (const tab of tabs) {
    const mine = tab.id === `tab-${view}`;
    tab.setAttribute("aria-selected", String(mine));
    tab.tabIndex = mine ? 0 : -1;
  }
  panel.setAttribute("aria-labelledby", `tab-${view}`);
  if (location.hash !== `#${view}`) history.replaceState(null, "", `${location.pathname}${location.search}#${view}`);
  draw();
}

async function watch(run) {
  source?.close();
  Object.assign(state, { run, head: {}, names: [], sites: [], rounds: [], events: [], cursor: "0.0" });
  panel.replaceChildren();
  history.replaceState(null, "", `${location.pathname}?run=${encodeURIComponent(run)}${location.hash}`);
  const first = await ask(`/api/view?run=${encodeURIComponent(run)}`);
  if (state.run !== run) return;
  if (first) take(first);
  connect(run);
}

function connect(run) {
  source = new EventSource(`/api/stream?run=${encodeURIComponent(run)}&since=${state.cursor}`);
  source.onopen = () => linked("live");
  source.onmessage = (event) => take(JSON.parse(event.data));
  source.addEventListener("runs", (event) => listed(JSON.parse(event.data)));
  source.onerror = () => {
    linked("connection lost, trying again");
    if (source.readyState === EventSource.CLOSED) setTimeout(() => state.run === run && connect(run), 3000);
  };
}

function linked(words) {
  setText(byId("link"), words);
  byId("link").classList.toggle("lost", words !== "live");
}

// The studies that are here; of those that came after the page was opened a line says so, until one is looked at.
function listed(names) {
  const picker = byId("run"), before = [...picker.options].map((option) => option.value);
  if (names.length === before.length && names.every((name) => before.includes(name))) return;
  const chosen = picker.value;
  state.runs = names;
  picker.replaceChildren(...names.map((name) => h("option", { value: name }, name)));
  if (names.includes(chosen)) picker.value = chosen;
  byId("picker").hidden = names.length < 2;
  if (!before.length) return;
  fresh = names.filter((name) => fresh.includes(name) || !before.includes(name));
  newcomers();
  draw();
}

function newcomers() {
  const more = fresh.length - MOST_FRESH;
  byId("fresh").hidden = !fresh.length;
  renew(byId("fresh"), fresh.length ? "New here:" : [], fresh.slice(0, MOST_FRESH).map((name) => h("button", { type: "button", "data-key": `fresh-${name}`, onclick: () => choose(name) }, name)),
    more > 0 ? `and ${more} more in the list` : []);
}

function choose(run) {
  byId("run").value = run;
  fresh = fresh.filter((name) => name !== run);
  newcomers();
  watch(run);
}

async function begin() {
  const list = await ask("/api/runs");
  if (!list) { linked("no answer, trying again"); setTimeout(begin, 2000); return; }
  const names = list.runs.map((one) => one.run), picker = byId("run");
  if (!names.length) { showMember(list.member); setText(byId("sentence"), "No study is here yet."); setTimeout(begin, 2000); return; }
  listed(names);
  const asked = new URLSearchParams(location.search).get("run");
  const run = names.includes(asked) ? asked : list.first;
  picker.value = run;
  picker.addEventListener("change", () => choose(picker.value));
  watch(run);
}

for (const tab of tabs) tab.addEventListener("click", () => go(tab.id.slice(4)));
byId("tabs").addEventListener("keydown", (event) => {
  const at = tabs.indexOf(document.activeElement);
  const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: tabs.length - 1 }[event.key];
  if (to === undefined || at < 0) return;
  event.preventDefault();
  const next = tabs[(to + tabs.length) % tabs.length];
  next.focus();
  go(next.id.slice(4));
});
window.addEventListener("hashchange", () => go(location.hash.slice(1)));
if (VIEWS[location.hash.slice(1)]) open = location.hash.slice(1);
go(open);
begin();
