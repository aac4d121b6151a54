/** The memory of the service, from its metrics, while the tab is seen. */
import { ask } from "./api.js";
import { drawn, element, megabytes } from "./words.js";

const EVERY_MS = 2000;
const KEPT = 60;
const WIDTH = 260;
const HEIGHT = 90;

/** Shows it in the section `host` from now on; `locked` hears that the key is not known any more. */
export function watch(host, locked) {
  const history = [];
  const look = async () => {
    if (!document.hidden) {
      try {
        const samples = read(await (await ask("metrics")).text());
        history.push(samples("memory_rss_bytes"));
        history.splice(0, history.length - KEPT);
        show(host, samples, history);
      } catch (error) {
        host.querySelector("#rss").textContent = "–";
        if (error.status === 401) locked(error);
      }
    }
    setTimeout(look, EVERY_MS);
  };
  look();
}

/** Returns what sums the samples of a metric, with a label if one is given. */
function read(text) {
  const samples = [...text.matchAll(/^ttgpt_(\w+)(\{[^\n]*\})? ([^\s]+)$/gm)];
  return (name, label = "") =>
    samples.filter((s) => s[1] === name && (s[2] ?? "").includes(label)).reduce((sum, s) => sum + Number(s[3]), 0);
}

function show(host, samples, history) {
  host.querySelector("#rss").textContent = (history.at(-1) / 1e6).toFixed(0);
  const most = Math.max(...history);
  const least = Math.min(...history);
  const span = Math.max(most - least, 0.05 * most); // so that a small change looks small
  const height = (bytes) => HEIGHT / 2 - ((bytes - (most + least) / 2) / span) * (HEIGHT - 8);
  const place = (bytes, index) => `${(index * WIDTH) / (KEPT - 1)},${height(bytes)}`;
  const seconds = (history.length * EVERY_MS) / 1000;
  const label = `Between ${megabytes(least)} and ${megabytes(most)} MB in the last ${seconds} seconds`;
  const svg = drawn("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label });
  svg.append(drawn("polyline", { class: "trend", points: history.map(place).join(" ") }));
  host.querySelector("#trend").replaceChildren(svg);
  const parts = {
    "Weights of all models": samples("model_weight_bytes", 'form="resident"'),
    "The same as dense fp32": samples("model_dense_equivalent_bytes"),
    "KV caches, at most": samples("kv_cache_bytes"),
    "Limit of the control group": samples("cgroup_memory_limit_bytes"),
  };
  const rows = Object.entries(parts).filter(([, bytes]) => bytes > 0);
  const words = ([name, bytes]) => [element("dt", {}, name), element("dd", {}, `${megabytes(bytes)} MB`)];
  host.querySelector("#parts").replaceChildren(...rows.flatMap(words));
}
