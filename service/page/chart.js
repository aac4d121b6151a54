/** Bytes against perplexity of all models, drawn as wide as there is room. */
import { drawn, element, megabytes, shortened } from "./words.js";

const HEIGHT = 320;
const MARGIN = { left: 52, right: 14, top: 12, bottom: 44 };
const SMALL = 5e-4; // a ratio that differs from 1 by this is drawn clearly apart from it
const RATIOS = [0.9, 0.99, 0.999, 1, 1.001, 1.01, 1.1, 2, 10, 100, 1e3, 1e4, 1e6];
const LINE = 14;
const FAR = [12, 26, 40, 54, 68, 82, 96, 110];
const WAYS = [0, ...FAR, ...FAR.map((far) => -far)];
// Where a label may stand, the nearest place first: pixels sideways and downwards.
const PLACES = WAYS.flatMap((x) => WAYS.map((y) => [x, y]))
  .slice(1)
  .sort((a, b) => Math.hypot(...a) - Math.hypot(...b));

const spread = (ratio) => Math.asinh((ratio - 1) / SMALL);

/** Draws `models` into `host`; `chosen` are the names of the first and the second. */
export function draw(host, models, chosen) {
  const names = shortened(models.map((model) => model.model_id));
  const known = models.flatMap((model, index) => (model.perplexity_ratio > 0 ? [{ model, name: names[index] }] : []));
  if (!known.length || !host.clientWidth) {
    host.replaceChildren(element("p", { class: "hint" }, "No model was compared with the dense one."));
    return;
  }
  const width = host.clientWidth;
  const x = scale(known.map(({ model }) => Math.log(model.bytes_disk / 1e6)), [MARGIN.left, width - MARGIN.right], 0.3);
  const y = scale(known.map(({ model }) => spread(model.perplexity_ratio)), [HEIGHT - MARGIN.bottom, MARGIN.top], 0.8);
  const points = known.map(({ model, name }) => ({
    name,
    side: ["first", "second"][chosen.indexOf(model.model_id)] ?? "",
    size: model.bytes_disk,
    ratio: model.perplexity_ratio,
    x: x(Math.log(model.bytes_disk / 1e6)),
    y: y(spread(model.perplexity_ratio)),
  }));
  const label = "Megabytes against perplexity of every model; the table below has the same figures";
  const svg = drawn("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, height: HEIGHT, role: "img", "aria-label": label });
  host.replaceChildren(svg);
  drawAxes(svg, x, y, width);
  drawFrontier(svg, points);
  points.forEach((point) => svg.append(mark(point)));
  drawLabels(svg, points, width);
}

/** Fills the table with the same figures. */
export function tabulate(body, models) {
  const rows = [...models].sort((a, b) => b.bytes_disk - a.bytes_disk).map((model) => {
    const smaller = (model.bytes_dense_fp32 / model.bytes_disk).toFixed(1);
    const ratio = model.perplexity_ratio?.toFixed(3) ?? "–";
    const cells = [megabytes(model.bytes_disk), smaller, model.perplexity.toFixed(2), ratio];
    const name = element("th", { scope: "row" }, model.model_id);
    return element("tr", {}, name, ...cells.map((cell) => element("td", {}, cell)));
  });
  body.replaceChildren(...rows);
}

/** Returns what maps values onto pixels, with a margin in units of the values. */
function scale(values, [from, to], margin) {
  const low = Math.min(...values) - margin;
  const high = Math.max(...values) + margin;
  const place = (value) => from + ((value - low) / (high - low)) * (to - from);
  return Object.assign(place, { low, high });
}

function drawAxes(svg, x, y, width) {
  const bottom = HEIGHT - MARGIN.bottom;
  let taken = Infinity;
  for (const ratio of RATIOS.filter((ratio) => spread(ratio) >= y.low && spread(ratio) <= y.high)) {
    const at = y(spread(ratio));
    if (taken - at < 16) continue;
    taken = at;
    svg.append(drawn("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: at, y2: at }));
    svg.append(drawn("text", { class: "tick", x: MARGIN.left - 8, y: at + 4, "text-anchor": "end" }, ratio));
  }
  taken = -Infinity;
  for (const size of sizes(x.low, x.high)) {
    const at = x(Math.log(size));
    if (at - taken < 34) continue;
    taken = at;
    svg.append(drawn("line", { class: "grid", x1: at, x2: at, y1: MARGIN.top, y2: bottom }));
    svg.append(drawn("text", { class: "tick", x: at, y: bottom + 18, "text-anchor": "middle" }, size));
  }
  const middle = (MARGIN.top + bottom) / 2;
  const turned = { class: "axis", x: 12, y: middle, transform: `rotate(-90 12 ${middle})`, "text-anchor": "middle" };
  svg.append(drawn("text", turned, "perplexity / dense"));
  const below = { class: "axis", x: (MARGIN.left + width) / 2, y: HEIGHT - 6, "text-anchor": "middle" };
  svg.append(drawn("text", below, "weights on disk, MB"));
}

function sizes(low, high) {
  const digits = high - low > Math.log(4) ? [1, 2, 5] : [1, 2, 3, 4, 5, 6, 7, 8, 9];
  const powers = Array.from({ length: 10 }, (_, index) => 10 ** (index - 3));
  const all = powers.flatMap((power) => digits.map((digit) => Number((digit * power).toPrecision(1))));
  return all.filter((size) => Math.log(size) >= low && Math.log(size) <= high);
}

function drawFrontier(svg, points) {
  const best = [];
  for (const point of [...points].sort((a, b) => a.size - b.size || a.ratio - b.ratio)) {
    if (!best.length || point.ratio < best.at(-1).ratio) best.push(point);
  }
  const steps = best.map((point, index) => (index ? `H${point.x}V${point.y}` : `M${point.x} ${point.y}`));
  svg.append(drawn("path", { class: "frontier", d: steps.join("") }));
}

/** Returns a circle, for the second of the chosen models a square. */
function mark({ name, side, size, ratio, x, y }) {
  const title = drawn("title", {}, `${name}: ${megabytes(size)} MB, ${ratio.toFixed(3)} times the dense perplexity`);
  const square = { class: "point second", x: x - 7, y: y - 7, width: 14, height: 14 };
  if (side === "second") return drawn("rect", square, title);
  return drawn("circle", { class: `point ${side}`, cx: x, cy: y, r: side ? 8 : 6 }, title);
}

/** Writes every name beside its point, where it covers neither another nor a point; farther off with a line to it. */
function drawLabels(svg, points, width) {
  const taken = points.map((point) => box(point.x - 8, point.y - 8, 16, 16));
  const inside = ({ left, right, top, bottom }) =>
    left >= MARGIN.left && right <= width && top >= 0 && bottom <= HEIGHT - MARGIN.bottom;
  for (const point of [...points].sort((a, b) => a.x - b.x)) {
    const text = drawn("text", { class: point.side && `${point.side}-label` }, point.name);
    svg.append(text);
    const length = text.getComputedTextLength();
    const places = PLACES.map((way) => beside(point, way, length));
    const free = (place) => inside(place) && !taken.some((other) => overlap(place, other));
    const place = places.find(free) ?? places[0];
    taken.push(place);
    text.setAttribute("x", place.left);
    text.setAttribute("y", place.bottom - 3);
    const line = `M${point.x} ${point.y}L${place.near} ${place.middle}`;
    if (place.far > 20) svg.prepend(drawn("path", { class: "leader", d: line }));
  }
}

function beside(point, [sideways, downwards], length) {
  const left = point.x + sideways - [length, length / 2, 0][Math.sign(sideways) + 1];
  const top = point.y + downwards - LINE / 2;
  const near = Math.min(Math.max(point.x, left), left + length);
  return { ...box(left, top, length, LINE), far: Math.hypot(sideways, downwards), near, middle: top + LINE / 2 };
}

const box = (left, top, width, height) => ({ left, top, right: left + width, bottom: top + height });
const overlap = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
