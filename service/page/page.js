/** Assembly: a prompt in, two continuations, a chart and the memory out. */
import { ask, key, RefusedError } from "./api.js";
import { draw, tabulate } from "./chart.js";
import { watch } from "./memory.js";
import { Panel } from "./panel.js";

const AGAIN_MS = 1000;
const ENDS = { length: "all tokens written", eos_token: "the text has ended", stop_sequence: "the text has ended" };

const $ = (id) => document.getElementById(id);
let panels = [];
let judge;
let running;

start();

async function start() {
  const info = await served();
  const { models } = info;
  judge = judgeOf(models);
  const first = models.find((model) => model.model_id === info.model_id);
  const others = models.filter((model) => model !== first).sort((a, b) => a.bytes_disk - b.bytes_disk);
  panels = [new Panel("first", models, first)];
  if (others.length) panels.push(new Panel("second", models, others[0]));
  $("texts").replaceChildren(...panels.map((panel) => panel.element));
  $("version").textContent = `ttgpt ${info.version}, ${models.length === 1 ? "one model" : `${models.length} models`}`;
  $("judge").textContent = judge.words;
  $("forget").hidden = !key.get();
  for (const id of ["texts", "surprise", "footprint", "memory"]) $(id).hidden = false;
  tabulate($("models"), models);
  const redraw = () => draw($("chart"), models, panels.map((panel) => panel.select.value));
  new ResizeObserver(redraw).observe($("chart"));
  for (const panel of panels) panel.select.addEventListener("change", () => (stop(), panel.describe(), redraw()));
  watch($("memory"), refused);
  $("write").disabled = false;
  say("Ready.");
}

/** Returns what is served, once it is and the key, if one is needed, is right. */
async function served() {
  for (;;) {
    try {
      return await (await ask("info")).json();
    } catch (error) {
      if (error.status === 401) await unlocked();
      else {
        say(error.status === 503 ? "The models are loading …" : `The service does not answer: ${error.message}`);
        await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
      }
    }
  }
}

/** Asks for a key until one is given. */
function unlocked() {
  say("");
  $("refusal").textContent = key.get() ? "The service does not know this key." : "";
  key.forget();
  if (!$("lock").open) $("lock").showModal();
  $("key").value = "";
  $("key").focus();
  return new Promise((resolve) => {
    $("lock").onclose = () => (key.get() ? resolve() : $("lock").showModal());
    $("unlock").onsubmit = () => key.set($("key").value);
  });
}

/** Returns the model that judges: the dense one, or the one with the least perplexity. */
function judgeOf(models) {
  const dense = models.find((model) => model.method === "dense");
  const model = dense ?? [...models].sort((a, b) => a.perplexity - b.perplexity)[0];
  const name = model.model_id;
  const who = dense ? `the dense model, ${name}` : `${name}, the best one here, as no dense model is served`;
  const words = `A complete text is coloured by how probable each token is to ${who}.`;
  return { model, words: `${words} "Of this text" is its perplexity to that model.` };
}

async function write() {
  stop();
  const mine = (running = new AbortController());
  const prompt = $("text").value;
  const number = (id) => $(id).valueAsNumber;
  const drawing = { do_sample: true, temperature: number("temperature"), top_p: number("top_p"), seed: number("seed") };
  const parameters = { ...drawing, max_new_tokens: number("tokens") };
  $("error").textContent = "";
  say("Writing …");
  $("stop").disabled = false;
  const ends = await Promise.allSettled(panels.map((panel) => panel.write(prompt, parameters, mine.signal)));
  if (running !== mine) return;
  const failed = ends.find((end) => end.status === "rejected" && end.reason.name !== "AbortError");
  if (failed) refused(failed.reason);
  const words = ends.map(({ value }, index) => {
    const { model_id: name } = panels[index].model;
    return value ? `${name}: ${value.count} tokens, ${ENDS[value.reason]}.` : `${name}: stopped.`;
  });
  say(words.join(" "));
  idle();
  await score(prompt, mine).catch(refused);
}

/** Colours the texts; all are scored in one request, after they are written, so that it slows none of them. */
async function score(prompt, mine) {
  const written = panels.filter((panel) => panel.written);
  if (!written.length) return;
  const texts = written.map((panel) => prompt + panel.written);
  const body = { model: judge.model.model_id, prompt: texts, max_tokens: 0, echo: true, logprobs: 0 };
  const { choices } = await (await ask("v1/completions", body)).json();
  for (const { index, logprobs } of choices) {
    const stillThere = running === mine && prompt + written[index].written === texts[index];
    if (stillThere) written[index].colour(prompt, logprobs);
  }
}

function stop() {
  running?.abort();
}

function idle() {
  if (document.activeElement === $("stop")) $("write").focus();
  $("stop").disabled = true;
}

function refused(error) {
  if (error.status === 401 && !$("lock").open) return unlocked().then(() => location.reload());
  const known = error instanceof RefusedError;
  $("error").textContent = known ? error.message : `The service does not answer: ${error.message}`;
}

function say(words) {
  $("status").textContent = words;
}

$("prompt").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!$("write").disabled) write();
});
$("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("prompt").requestSubmit($("write"));
});
document.addEventListener("keydown", (event) => event.key === "Escape" && stop());
$("stop").addEventListener("click", stop);
$("forget").addEventListener("click", () => (key.forget(), location.reload()));
