// Makes elements. Whatever comes from a site becomes a text node here, never markup: there is no other way in.
const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    node.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return node;
}

export const h = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
export const s = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);
export const byId = (id) => document.getElementById(id);

export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;  // no needless news for a screen reader
}

// A section that stays in the page while its content is made again; focus inside it is kept by data-key.
export function renew(node, ...children) {
  const held = node.contains(document.activeElement) ? document.activeElement.dataset.key : null;
  const open = new Set([...node.querySelectorAll("details[open][data-key]")].map((d) => d.dataset.key));
  const places = new Map([...node.querySelectorAll(".scroll[data-key]")].map((d) => [d.dataset.key, d.scrollLeft]));
  const old = node.textContent;
  node.replaceChildren(...children.flat(Infinity).filter((child) => child));
  for (const details of node.querySelectorAll("details[data-key]")) details.open = open.has(details.dataset.key) || details.open;
  for (const scroll of node.querySelectorAll(".scroll[data-key]")) {
    if (places.has(scroll.dataset.key)) scroll.scrollLeft = places.get(scroll.dataset.key);
  }
  if (held) node.querySelector(`[data-key="${CSS.escape(held)}"]`)?.focus({ preventScroll: true });
  return old !== node.textContent;
}

// A table behind a chart, or on its own. rows: arrays of cells; a cell is text, a node, or {cell, number: true}.
// stack: on a phone each row becomes a block of its own; the roles keep it a table for a screen reader.
export function table(caption, heads, rows, { key = caption, empty = "Nothing yet.", stack = false } = {}) {
  if (!rows.length) return h("p", { class: "quiet" }, empty);
  const words = heads.map((_, i) => rows.some((cells) => isWords(cells[i])) ? "text" : null);
  const role = (name) => (stack ? name : null);
  return h("div", { class: "scroll", role: "region", "aria-label": caption, tabindex: "0", "data-key": key },
    h("table", { class: stack ? "stack" : null, role: role("table") },
      h("caption", null, caption),
      h("thead", { role: role("rowgroup") }, h("tr", { role: role("row") }, heads.map((head, i) => h("th", { scope: "col", class: words[i], role: role("columnheader") }, head)))),
      h("tbody", { role: role("rowgroup") }, rows.map((cells) => h("tr", { role: role("row") }, cells.map((cell, i) =>
        i === 0 ? h("th", { scope: "row", role: role("rowheader") }, cell) : h("td", { class: cell === "–" ? `${words[i] || ""} none` : words[i], "data-label": heads[i], role: role("cell") }, cell)))))));
}

function isWords(cell) {
  return cell instanceof Node || (typeof cell === "string" && !/^[-–0-9.,:+ %/≈<>]*( ?(s|min|h|days|B|kB|MB|GB))?$/.test(cell));
}

// Width of a chart in its own units: on a phone it is drawn narrower, so that its words stay as large as the page's.
export const chartWidth = () => (window.innerWidth < 640 ? 380 : 760);

export const details = (key, summary, ...children) =>
  h("details", { "data-key": key }, h("summary", { "data-key": `${key}-summary` }, summary), children);
