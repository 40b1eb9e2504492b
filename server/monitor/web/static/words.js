// Numbers, times and states in words; the same everywhere on the page.
export const STATUS = {
  preparing: { icon: "…", word: "Preparing" }, running: { icon: "▶", word: "Running" }, stalled: { icon: "‖", word: "Stalled" },
  complete: { icon: "✓", word: "Complete" }, incomplete: { icon: "◐", word: "Incomplete" }, failed: { icon: "✕", word: "Failed" },
  unknown: { icon: "?", word: "Unknown" },
};
// letter on the wire -> class, mark in the strip, words
export const OUTCOMES = {
  C: { name: "contributed", mark: "", words: "contributed" },
  "?": { name: "asked", mark: "?", words: "asked, not answered yet" },
  L: { name: "late", mark: "L", words: "late" },
  R: { name: "rejected", mark: "R", words: "rejected by the sanity gate" },
  X: { name: "refused", mark: "X", words: "reply refused" },
  B: { name: "out_of_budget", mark: "B", words: "out of budget" },
  P: { name: "abstained", mark: "P", words: "abstained by its policy" },
  A: { name: "absent", mark: "A", words: "absent" },
  F: { name: "failed", mark: "F", words: "failed" },
  "-": { name: "not_sampled", mark: "·", words: "not drawn" },
  " ": { name: "waiting", mark: "", words: "waiting" },
};
// phase of a site's round -> what it is, for keys and tables; in the order in which they are drawn
export const PHASES = {
  wait: { head: "Wait", words: "waiting at the site for its turn" },
  load: { head: "Load", words: "loading weights, model and patients" },
  train: { head: "Train", words: "training" },
  mask: { head: "Mask", words: "masking for the secure sum" },
  send: { head: "Send", words: "on the way: sending there and back, Flower's turns, checks" },
};
export const BY_NAME = Object.fromEntries(Object.values(OUTCOMES).map((outcome) => [outcome.name, outcome]));
export const MODELS = { fused: "image + clinical (fused)", image: "image only", clinical: "clinical only" };

export const number = (value, digits = 3) => (typeof value === "number" ? value.toFixed(digits) : "–");
export const count = (value) => (typeof value === "number" ? value.toLocaleString("en") : "–");

// A number of all; without the protocol it is not known of how many.
export const outOf = (value, all) => (all ? `${value} of ${all}` : String(value));

export function interval(triple, digits = 3) {
  if (!triple || triple[0] === null) return "–";
  const [value, low, high] = triple;
  return low === null || high === null ? number(value, digits) : `${number(value, digits)} (${number(low, digits)} to ${number(high, digits)})`;
}

export function bytes(value) {
  if (typeof value !== "number") return "–";
  const units = ["B", "kB", "MB", "GB", "TB"];
  let size = value, unit = 0;
  while (size >= 1000 && unit < units.length - 1) { size /= 1000; unit += 1; }
  return `${size >= 100 || unit === 0 ? size.toFixed(0) : size.toFixed(1)} ${units[unit]}`;
}

export function span(seconds) {
  if (typeof seconds !== "number") return "–";
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 120) return `${seconds.toFixed(0)} s`;
  if (seconds < 7200) return `${(seconds / 60).toFixed(0)} min`;
  return seconds < 172800 ? `${(seconds / 3600).toFixed(1)} h` : `${(seconds / 86400).toFixed(1)} days`;
}

// The phases that are known of one site, each with its seconds; in words.
export function phaseWords(phases) {
  if (!phases) return "–";
  const parts = Object.keys(PHASES).filter((name) => phases[name] >= 0.05 || (name === "train" && phases[name] !== null)).map((name) => `${name} ${span(phases[name])}`);
  return [...parts, `of ${span(phases.round_trip)}`].map((part) => part.replaceAll(" ", "\u00a0")).join(parts.length ? ", " : "");
}

export function clock(time, withSeconds = false) {
  if (typeof time !== "number") return "–";
  const date = new Date(1000 * time);
  const day = date.toDateString() === new Date().toDateString() ? {} : { day: "2-digit", month: "short" };
  return date.toLocaleString("en-GB", { ...day, hour: "2-digit", minute: "2-digit", ...(withSeconds ? { second: "2-digit" } : {}) });
}

export const date = (time) => (typeof time === "number" ? new Date(1000 * time).toISOString().slice(0, 10) : "–");
export const short = (hash) => (hash ? hash.slice(0, 12) : "–");
export const plainKind = (kind) => kind.replaceAll("_", " ");
