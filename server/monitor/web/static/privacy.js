// What has been spent, of what, and where it leads; never by colour alone.
import { chartWidth, h, s, details, table, renew } from "./dom.js";
import { number } from "./words.js";

const NAME = 140, ROW = 34;

function chart(sites, most) {
  const WIDTH = chartWidth();
  const x = (value) => NAME + (value / most) * (WIDTH - NAME - 20);
  const words = sites.map((site) => `${site.name}: ${site.privacy.words}`).join(". ");
  const step = most > 10 ? 5 : most > 4 ? 2 : most > 1 ? 0.5 : 0.1;
  const axis = [];
  for (let v = 0; v <= most; v += step) axis.push(s("line", { class: "grid", x1: x(v), x2: x(v), y1: 4, y2: sites.length * ROW + 4 }), s("text", { class: "tick", x: x(v), y: sites.length * ROW + 20, "text-anchor": "middle" }, Number(v.toFixed(2))));
  return s("svg", { viewBox: `0 0 ${WIDTH} ${sites.length * ROW + 28}`, class: "chart", role: "img", "aria-labelledby": "eps-title eps-words" },
    s("title", { id: "eps-title" }, "Epsilon spent, projected and allowed, by site"), s("desc", { id: "eps-words" }, words), axis,
    sites.map(({ name, privacy }, i) => {
      const top = i * ROW + 8, over = privacy.last_round !== null;
      return [s("text", { class: "row-name", x: 0, y: top + 15 }, name.length > 18 ? `${name.slice(0, 17)}…` : name),
        s("rect", { class: `projected ${over ? "over" : ""}`, x: x(0), y: top + 3, width: Math.max(0, x(Math.min(most, privacy.projected)) - x(0)), height: 16 }),
        s("rect", { class: privacy.share >= 0.8 ? "spent near" : "spent", x: x(0), y: top + 3, width: Math.max(0, x(privacy.epsilon) - x(0)), height: 16 }),
        s("line", { class: "budget", x1: x(privacy.budget), x2: x(privacy.budget), y1: top - 1, y2: top + 23 }),
        over ? s("text", { class: "tick strong", x: Math.min(x(privacy.budget) + 5, WIDTH - 130), y: top + 15 }, `out after round ${privacy.last_round}`) : null];
    }));
}

export function show(node, state) {
  const sites = state.sites.filter((site) => site.privacy);
  if (!state.head.private || !sites.length) {  // an exploration has privacy and reports no epsilon
    renew(node, h("h2", null, "Privacy"), h("p", { class: state.head.private ? "" : "notice bad" }, state.head.privacy_words));
    return;
  }
  const most = 1.08 * Math.max(...sites.map((site) => Math.max(site.privacy.budget, site.privacy.projected)), 0.1);
  const rows = sites.map(({ name, privacy: p }) => [name, number(p.epsilon, 2), number(p.budget, 2), `${(100 * p.share).toFixed(0)} %`, `≈ ${number(p.projected, 2)}`,
    p.last_round === null ? "can afford all rounds" : `drops out after round ${p.last_round}`]);
  renew(node, h("h2", null, "Epsilon by site"),
    h("p", null, state.head.privacy_words),
    h("figure", null, sites.length <= 60 ? chart(sites, most) : null,
      h("figcaption", { class: "legend" }, h("span", null, h("span", { class: "chip spent-chip" }), "spent"), sites.some((site) => site.privacy.share >= 0.8) ? h("span", null, h("span", { class: "chip near-chip" }), "spent, 80 % of the budget or more") : null, h("span", null, h("span", { class: "chip projected-chip" }), "projected to the study's end"), h("span", null, h("span", { class: "chip budget-chip" }), "budget of the site"))),
    details("eps-table", "The same as a table", table("Epsilon of each site's training patients", ["Site", "Spent", "Budget", "Share", "At the end", "Outlook"], rows, { stack: true })),
    h("p", { class: "quiet" }, "Spent is what each site's own accountant reports with its reply. The projection is reckoned here, for a site that takes part in every round that is left; it may be off by a round or two."));
}
