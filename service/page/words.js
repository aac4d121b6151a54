/** How values are written, and elements made. */
export const megabytes = (bytes) => (bytes / 1e6).toFixed(bytes < 1e8 ? 2 : 0);
export const percent = (share) => `${share < 0.001 ? "< 0.1" : (100 * share).toPrecision(share < 0.995 ? 2 : 3)} %`;

/** Returns how good a model is, in words. */
export function quality({ method, perplexity_ratio: ratio }) {
  if (method === "dense") return "the dense model itself";
  if (ratio === null) return "not compared with the dense model";
  const words = [[1.01, "as good as"], [1.1, "close to"], [1.5, "worse than"]];
  const found = words.find(([most]) => ratio <= most)?.[1] ?? "far worse than";
  return `${found} the dense model (${ratio.toFixed(3)} times its perplexity)`;
}

/** Returns models' names without the words that all begin with. */
export function shortened(names) {
  const words = names[0].split("-");
  let same = 0;
  const start = (count) => `${words.slice(0, count).join("-")}-`;
  while (names.length > 1 && names.every((name) => name.startsWith(start(same + 1)))) same += 1;
  return names.map((name) => name.split("-").slice(same).join("-"));
}

/** Returns a new HTML element with attributes and children. */
export function element(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** Returns a new SVG element with attributes and children. */
export function drawn(tag, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function filled(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}
