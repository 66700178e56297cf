// Making elements. Text only ever enters the page as text nodes and attribute values, never as
// markup, so nothing that a model is called can become an element.

// Characters that cannot be seen are written as escapes, as Python's `shown` does in a terminal: marks
// of direction among them would let letters be read in another order than they are written in.

const SVG = "http://www.w3.org/2000/svg";

const UNSEEN = /(?![\n\t])[\p{Cc}\p{Cf}\p{Co}\p{Cs}\p{Zl}\p{Zp}]/gu;

/** A text letter by letter. */
function shown(text) {
  return String(text).replace(UNSEEN, (char) => `\\u{${char.codePointAt(0).toString(16)}}`);
}

/** h("button.line", {title: "x", onclick: f}, "text", child, [children]) makes an element. */
function h(kind, attributes = {}, ...children) {
  const [tag, ...classes] = kind.split(".");
  return fill(document.createElement(tag || "div"), classes, attributes, children);
}

/** The same for SVG. */
function s(kind, attributes = {}, ...children) {
  const [tag, ...classes] = kind.split(".");
  return fill(document.createElementNS(SVG, tag), classes, attributes, children);
}

function fill(element, classes, attributes, children) {
  if (classes.length) element.setAttribute("class", classes.join(" "));
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : shown(value));
  }
  append(element, children);
  return element;
}

function append(element, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : shown(child));
  }
}

function replace(element, ...children) {
  element.replaceChildren();
  append(element, children);
}

/** Says something to a screen reader. */
function announce(text) {
  document.getElementById("live").textContent = text;
}

/** Puts text on the clipboard, where the browser lets a file do so; else selects it to be copied. */
async function copyText(text, what) {
  try {
    await navigator.clipboard.writeText(shown(text));
  } catch {
    const box = h("textarea.hidden", { "aria-hidden": "true" });
    box.value = shown(text);
    document.body.append(box);
    box.select();
    document.execCommand("copy");
    box.remove();
  }
  announce(`${what} copied`);
  const note = h("div.toast", {}, `${what} copied`);
  document.body.append(note);
  setTimeout(() => note.remove(), 1600);
}

function count(number, noun, plural = `${noun}s`) {
  return `${number.toLocaleString("en")} ${number === 1 ? noun : plural}`;
}

/** 1234567 as "1.2 M" with a unit behind it. */
function scaled(value, unit, signed = false) {
  const sign = signed && value > 0 ? "+" : "";
  for (const [scale, prefix] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "K"]])
    if (Math.abs(value) >= scale) return `${sign}${(value / scale).toFixed(1)} ${prefix}${unit}`;
  return `${sign}${Math.round(value)} ${unit}`;
}

/** "385.5 → 136.9 MFLOP": one unit where both have the same. */
function fromTo(before, after, text) {
  const [left, right] = [text(before), text(after)];
  const unit = right.split(" ")[1];
  return left.endsWith(` ${unit}`) ? `${left.split(" ")[0]} → ${right}` : `${left} → ${right}`;
}

/** Text in which `these` parts are code. */
function marked(text) {
  return text.split("`").map((part, i) => (i % 2 ? h("code", {}, part) : part));
}

/** A row of column heads; those that start with a digit sign are of numbers. */
function headRow(titles) {
  return h("thead", {}, h("tr", {}, titles.map((title) => h(title.startsWith("#") ? "th.number" : "th", { scope: "col" }, title === "#" ? title : title.replace("#", "")))));
}

const flopText = (value, signed) => scaled(value, "FLOP", signed);
const byteText = (value, signed) => scaled(value, "B", signed);

function timeText(seconds) {
  if (seconds >= 1) return `${seconds.toFixed(2)} s`;
  return seconds >= 0.0005 ? `${Math.round(seconds * 1000)} ms` : "0 ms";
}
