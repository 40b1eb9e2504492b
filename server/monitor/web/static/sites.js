// Who took part in which round, and each site as the coordinator knows it.
import { h, details, table, renew } from "./dom.js";
import { Strip, key } from "./strip.js";
import { BY_NAME, bytes, clock, count, date, phaseWords, span } from "./words.js";

let strip = null;

function presence(site, now) {
  if (site.silent_s !== null) return h("span", { class: "here flag bad" }, `silent for ${span(site.silent_s)}`);
  if (site.present === true) return h("span", { class: "here flag good" }, "here");
  if (site.present === false) return h("span", { class: "here flag bad" }, "not here");
  return h("span", { class: "here quiet" }, site.heard ? `heard ${span(Math.max(0, now - site.heard))} ago` : "not heard yet");
}

export function outcome(name) {
  const known = BY_NAME[name] || { name: "failed", words: name, mark: "" };
  return h("span", { class: "outcome" }, h("span", { class: `chip cell-${known.name}`, "aria-hidden": "true" }, known.mark), known.words);
}

function warnings(party) {
  const warn = [];
  if (party.trainer_up === false) warn.push("its trainer does not answer");
  if (party.words) warn.push(party.words);
  if (party.clock_ahead_s !== null && Math.abs(party.clock_ahead_s) > 2) warn.push(`its clock is ${span(Math.abs(party.clock_ahead_s))} ${party.clock_ahead_s > 0 ? "ahead" : "behind"}`);
  return warn;
}

function card(site, now) {
  const warn = warnings(site);
  if (site.reason && site.now !== "contributed") warn.push(site.reason);
  return [site.name, outcome(site.now), presence(site, now), warn.join("; ") || "–", count(site.patients), site.phases ? phaseWords(site.phases) : span(site.seconds), bytes(site.bytes_up), bytes(site.bytes_down),
    site.device || "–", site.release || "–", date(site.certificate_expires)];
}

export function show(node, state, go) {
  if (!strip || !node.contains(strip.node)) {
    strip = new Strip((round) => go("rounds", round));
    node.replaceChildren(h("h2", null, "Sites and rounds"), h("div", { id: "strip-place" }, strip.node), key(), h("div", { id: "sites-table" }));
  }
  strip.draw(state.names, state.rounds, state.head.planned);
  const names = [...new Set(state.sites.flatMap((site) => Object.keys(site.rounds)))].sort();
  const counts = state.sites.map((site) => [site.name, ...names.map((name) => count(site.rounds[name] || 0))]);
  const trouble = [...state.rounds].reverse().flatMap((r) => Object.entries(r.x).map(([site, [code, reason]]) => [String(r.n), site, code || "–", reason])).slice(0, 200);
  renew(node.querySelector("#sites-table"),
    details("strip-table", "The same as tables", table("Closed rounds by outcome, as the journal counts them", ["Site", ...names.map((n) => n.replaceAll("_", " "))], counts),
      table("Why sites were not in a round, newest first", ["Round", "Site", "Code", "Reason"], trouble, { empty: "Every site was in every round." })),
    h("h2", null, "Each site"),
    table(state.head.member ? "Sites as the coordinator tells of them" : "Sites as the coordinator knows them", ["Site", "Newest round", "Here", "Words", "Patients (rounded)", "Seconds of its last round", "Sent", "Received", "Device", "Release", "Certificate ends"],
      state.sites.map((site) => card(site, state.now)), { stack: true }),
    ...(state.head.evaluators || []).map((one) => h("p", { class: "evaluator" }, `The evaluator${one.name === "evaluator" ? "" : ` ${one.name}`}, which measures the model: `, presence(one, state.now), one.heard && one.present !== null ? `, last heard ${clock(one.heard, true)}` : "", warnings(one).map((words) => `; ${words}`).join(""), one.certificate_expires ? `; its certificate ends ${date(one.certificate_expires)}` : "")),
    state.sites.length ? h("p", { class: "quiet" }, `What leaves each site in this study: ${state.head.gives}. The number of patients is the rounded one of the protocol that every site approved.`) : null);
}
