// Line charts as SVG. Colours come from the style sheet by class; lines differ by dash and label as well.
import { chartWidth, s } from "./dom.js";
import { number } from "./words.js";

const LEFT = 46, RIGHT = 14, TOP = 14, BOTTOM = 40;

export function ticks(low, high, wanted) {
  const rough = (high - low) / wanted || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((m) => m >= rough);
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step / 1e6; value += step) found.push(Number(value.toFixed(10)));
  return found;
}

// series: [{name, label, className, points: [[x, y, low, high], ...]}]; marks: [{x, label}]
export function lines({ title, words, series, marks = [], yLabel, xLabel = "round", xMax }) {
  const WIDTH = chartWidth(), HEIGHT = WIDTH < 500 ? 260 : 320;
  const all = series.flatMap((one) => one.points);
  const values = all.flatMap(([, y, low, high]) => [y, low, high]).filter((v) => typeof v === "number");
  const floor = Math.max(0, Math.floor((Math.min(...values, 0.5) - 0.02) * 20) / 20);
  const top = Math.min(1, Math.ceil((Math.max(...values, 0.6) + 0.01) * 20) / 20);
  const last = Math.max(xMax || 1, ...all.map(([x]) => x), 1);
  const x = (v) => LEFT + (v / last) * (WIDTH - LEFT - RIGHT);
  const y = (v) => TOP + (1 - (v - floor) / (top - floor)) * (HEIGHT - TOP - BOTTOM);
  const id = `chart-${title.replace(/\W+/g, "-").toLowerCase()}`;
  const grid = ticks(floor, top, 5).map((v) => [
    s("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(v), y2: y(v) }),
    s("text", { class: "tick", x: LEFT - 6, y: y(v) + 4, "text-anchor": "end" }, v.toFixed(2))]);
  const steps = ticks(0, last, WIDTH < 500 ? 5 : 8).filter((v) => Number.isInteger(v)).map((v) => [
    s("line", { class: "grid", x1: x(v), x2: x(v), y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM + 4 }),
    s("text", { class: "tick", x: x(v), y: HEIGHT - BOTTOM + 17, "text-anchor": "middle" }, v)]);
  const bands = series.map((one) => {
    const inside = one.points.filter((p) => typeof p[2] === "number" && typeof p[3] === "number");
    if (!one.band || inside.length < 2) return null;
    const up = inside.map((p) => `${x(p[0]).toFixed(1)},${y(Math.min(p[3], top)).toFixed(1)}`);
    const down = inside.reverse().map((p) => `${x(p[0]).toFixed(1)},${y(Math.max(p[2], floor)).toFixed(1)}`);
    return s("polygon", { class: `band ${one.className}`, points: [...up, ...down].join(" ") });
  });
  const curves = series.map((one) => [
    s("polyline", { class: `line ${one.className}`, points: one.points.map((p) => `${x(p[0]).toFixed(1)},${y(p[1]).toFixed(1)}`).join(" ") }),
    one.points.length <= 40 ? one.points.map((p) => s("circle", { class: `dot ${one.className}`, cx: x(p[0]), cy: y(p[1]), r: 3 })) : null]);
  const flags = marks.map((mark) => [
    s("line", { class: "mark", x1: x(mark.x), x2: x(mark.x), y1: TOP, y2: HEIGHT - BOTTOM }),
    s("text", { class: "tick", x: x(mark.x), y: TOP - 3, "text-anchor": x(mark.x) > WIDTH - 60 ? "end" : x(mark.x) < LEFT + 30 ? "start" : "middle" }, mark.label)]);
  const picture = s("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-labelledby": `${id}-title ${id}-words`, class: "chart" },
    s("title", { id: `${id}-title` }, title), s("desc", { id: `${id}-words` }, words),
    grid, steps, bands, curves, flags,
    s("text", { class: "tick", x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 6, "text-anchor": "middle" }, xLabel),
    s("text", { class: "tick", x: 12, y: (TOP + HEIGHT - BOTTOM) / 2, "text-anchor": "middle", transform: `rotate(-90 12 ${(TOP + HEIGHT - BOTTOM) / 2})` }, yLabel));
  const pointer = s("line", { class: "pointer", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" });
  picture.append(pointer);
  return { picture, pointer, nearest(event) {
    const box = picture.getBoundingClientRect();
    const at = (((event.clientX - box.left) / box.width) * WIDTH - LEFT) / (WIDTH - LEFT - RIGHT) * last;
    const found = [...new Set(all.map((p) => p[0]))].reduce((a, b) => (Math.abs(b - at) < Math.abs(a - at) ? b : a), all.length ? all[0][0] : 0);
    pointer.setAttribute("x1", x(found)); pointer.setAttribute("x2", x(found)); pointer.setAttribute("visibility", "visible");
    return found;
  } };
}

export function legend(series) {
  return series.map((one) => {
    const swatch = s("svg", { viewBox: "0 0 34 10", class: "swatch", "aria-hidden": "true" }, s("line", { class: `line ${one.className}`, x1: 1, x2: 33, y1: 5, y2: 5 }));
    const last = one.points.at(-1);
    return [swatch, `${one.label}${last ? ` ${number(last[1])}` : ""}`];
  });
}
