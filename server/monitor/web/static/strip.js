// The heat strip: sites x rounds. One path for each outcome, so that 500 x 50 cells are a dozen elements.
import { h, s } from "./dom.js";
import { OUTCOMES } from "./words.js";

const NAME = 132, ROW = 22, HEAD = 20;

export class Strip {
  constructor(onPick) {
    this.onPick = onPick;
    this.at = null;  // [site, round] under the keyboard or the pointer
    this.say = h("p", { class: "quiet strip-words", role: "status" }, "Point at a cell, or move with the arrow keys.");
    this.names = h("div", { class: "strip-names" });
    this.scroll = h("div", { class: "strip-scroll" });
    this.node = h("div", { class: "strip" }, h("div", { class: "strip-both" }, this.names, this.scroll), this.say);
  }

  draw(names, rounds, planned) {
    const numbers = rounds.filter((r) => r.n > 0 && r.o.trim() !== "");
    const columns = Math.max(1, numbers.length ? numbers.at(-1).n : 1);
    const shown = Math.max(columns, Math.min(planned, 40));
    const width = Math.max(4, Math.min(22, Math.floor(900 / shown)));
    this.shape = { names, width, columns, by: new Map(numbers.map((r) => [r.n, r])) };
    const paths = Object.fromEntries(Object.keys(OUTCOMES).map((letter) => [letter, []]));
    const marks = [];
    const gap = width > 6 ? 1.5 : 0.4;
    for (const round of numbers) {
      const left = (round.n - 1) * width + 2;
      for (let i = 0; i < names.length; i += 1) {
        const letter = round.o[i] || " ", top = HEAD + i * ROW;
        paths[letter]?.push(`M${left} ${top + 1}h${width - gap}v${ROW - 3}h-${width - gap}z`);
        if (width >= 11 && OUTCOMES[letter]?.mark) {
          marks.push(s("text", { class: letter === "?" || letter === "-" ? "cell-mark faint" : "cell-mark", x: left + (width - gap) / 2, y: top + ROW - 7, "text-anchor": "middle" }, OUTCOMES[letter].mark));
        }
      }
    }
    const every = shown <= 12 ? 1 : width >= 18 ? 5 : width >= 8 ? 10 : 50;
    const heads = [];
    for (let n = 1; n <= shown; n += 1) {
      if (n === 1 || n % every === 0) heads.push(s("text", { class: "tick", x: (n - 0.5) * width + 2, y: HEAD - 6, "text-anchor": "middle" }, n));
    }
    const total = shown * width + 12, height = HEAD + names.length * ROW + 2;
    this.cursor = s("rect", { class: "cursor", width: width, height: ROW, visibility: "hidden" });
    const picture = s("svg", { viewBox: `0 0 ${total} ${height}`, width: total, height, class: "heat", tabindex: "0", role: "application",
      "aria-label": `Sites and rounds: ${names.length} sites, ${columns} rounds. Arrow keys move, Enter opens the round.`, "data-key": "strip",
      onkeydown: (event) => this.key(event), onpointermove: (event) => this.point(event), onclick: () => this.at && this.onPick(this.at[1]),
      onfocus: () => this.move(this.at || [0, columns]), onblur: () => this.cursor.setAttribute("visibility", "hidden") },
      heads, Object.entries(paths).map(([letter, cells]) => cells.length ? s("path", { class: `cell ${OUTCOMES[letter].name}`, d: cells.join("") }) : null),
      marks, this.cursor);
    const follow = this.columns !== columns;
    this.columns = columns;
    const focused = this.scroll.contains(document.activeElement);
    this.scroll.replaceChildren(picture);
    if (this.drawn !== names.join()) {
      this.drawn = names.join();
      this.names.replaceChildren(s("svg", { width: NAME, height, "aria-hidden": "true" }, names.map((name, i) =>
        s("text", { class: "row-name", x: 0, y: HEAD + i * ROW + ROW - 7 }, name.length > 17 ? `${name.slice(0, 16)}…` : name))));
    }
    if (follow) this.scroll.scrollLeft = Math.max(0, columns * width + 2 * width - this.scroll.clientWidth);  // the newest in sight
    if (focused) picture.focus({ preventScroll: true });
    return this.node;
  }

  key(event) {
    const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    const [site, round] = this.at || [0, this.shape.columns];
    if (moves[event.key]) this.move([site + moves[event.key][0], round + moves[event.key][1]]);
    else if (event.key === "Home") this.move([site, 1]);
    else if (event.key === "End") this.move([site, this.shape.columns]);
    else if (event.key === "Enter") this.onPick(round);
    else return;
    event.preventDefault();
  }

  point(event) {
    const picture = event.currentTarget, box = picture.getBoundingClientRect();
    const site = Math.floor((event.clientY - box.top - HEAD) / ROW), round = Math.floor((event.clientX - box.left - 2) / this.shape.width) + 1;
    if (site >= 0 && site < this.shape.names.length && round >= 1 && round <= this.shape.columns) this.move([site, round]);
  }

  move([site, round]) {
    const { names, width, columns, by } = this.shape;
    if (!names.length) return;
    this.at = [Math.max(0, Math.min(names.length - 1, site)), Math.max(1, Math.min(columns, round))];
    const [i, n] = this.at, found = by.get(n), outcome = OUTCOMES[found?.o[i] || " "];
    const [code, reason] = found?.x[names[i]] || ["", ""];
    this.cursor.setAttribute("x", (n - 1) * width + 1); this.cursor.setAttribute("y", HEAD + i * ROW - 1);
    this.cursor.setAttribute("visibility", "visible");
    this.say.textContent = `${names[i]}, round ${n}: ${outcome.words}${reason ? `. ${reason}` : code ? ` (${code})` : ""}`;
  }
}

export function key() {
  return h("ul", { class: "key", "aria-label": "What the cells mean" }, Object.values(OUTCOMES).filter((o) => o.name !== "waiting").map((outcome) =>
    h("li", null, h("span", { class: `chip cell-${outcome.name}`, "aria-hidden": "true" }, outcome.mark), outcome.words)));
}
