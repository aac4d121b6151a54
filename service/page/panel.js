/** One model's continuation: which model, its figures, its text. */
import { events, RefusedError } from "./api.js";
import { element, megabytes, percent, quality } from "./words.js";

const LEAST = [0.5, 0.1, 0.01, 0.001]; // probability of the levels of surprise s0 to s3
const NONE = "–";

export class Panel {
  /** Makes a panel for one of `models`; `side` is "first" or "second". */
  constructor(side, models, chosen) {
    this.select = element("select", { "aria-label": `The ${side} model` });
    this.select.append(...models.map((model) => element("option", {}, model.model_id)));
    this.select.value = chosen.model_id;
    this.about = element("p", { class: "hint" });
    this.dd = {};
    this.text = element("p", { class: "text" });
    this.table = element("tbody");
    this.tokens = this.makeTable(side);
    this.element = element("article", { class: `panel ${side}`, "aria-label": `Text of the ${side} model` });
    this.element.append(this.select, this.about, this.makeFigures(), this.text, this.tokens);
    this.models = models;
    this.describe();
  }

  get model() {
    return this.models.find((model) => model.model_id === this.select.value);
  }

  makeFigures() {
    const names = { speed: "tokens/s", bytes: "MB", perplexity: "perplexity", own: "of this text" };
    const rows = Object.entries(names).map(([key, name]) => {
      this.dd[key] = element("dd", {}, NONE);
      return element("div", {}, element("dt", {}, name), this.dd[key]);
    });
    return element("dl", { class: "figures" }, ...rows);
  }

  makeTable(side) {
    const names = ["token", "probability", "bits"].map((name) => element("th", { scope: "col" }, name));
    const table = element("table", {}, element("thead", {}, element("tr", {}, ...names)), this.table);
    const region = { class: "wide", role: "region", tabindex: 0, "aria-label": `Tokens of the ${side} text` };
    return element("details", { hidden: "" }, element("summary", {}, "Every token"), element("div", region, table));
  }

  /** Shows the chosen model's figures, and no text. */
  describe() {
    const { model } = this;
    const smaller = (model.bytes_dense_fp32 / model.bytes_disk).toFixed(1);
    this.about.textContent = `${smaller} times smaller than fp32, ${quality(model)}.`;
    this.dd.bytes.textContent = megabytes(model.bytes_disk);
    this.dd.perplexity.textContent = model.perplexity.toFixed(model.perplexity < 1000 ? 1 : 0);
    this.clear();
  }

  clear() {
    this.written = "";
    this.dd.speed.textContent = this.dd.own.textContent = NONE;
    this.text.replaceChildren();
    this.tokens.hidden = true;
  }

  /** Shows the continuation of `prompt` as it comes; returns how many tokens it has, and why it ended. */
  async write(prompt, parameters, signal) {
    this.clear();
    this.text.append(element("span", { class: "prompt" }, prompt));
    this.text.setAttribute("aria-busy", "true");
    let began = performance.now();
    let count = 0;
    let first = 0; // tokens that came at once, before which there is nothing to measure from
    try {
      const body = { inputs: prompt, model: this.model.model_id, parameters };
      for await (const come of events("generate_stream", body, signal)) {
        const text = come.map((event) => event.token.text).join("");
        const { details } = come.at(-1);
        const now = performance.now();
        count += come.length;
        this.written += text;
        this.text.append(text);
        if (first || details) this.dd.speed.textContent = Math.round((1000 * (count - first)) / (now - began));
        else [first, began] = [count, now];
        if (details) return { count, reason: details.finish_reason };
      }
      throw new RefusedError("The answer was cut.");
    } finally {
      this.text.removeAttribute("aria-busy");
    }
  }

  /** Colours the text by the probabilities that `scored`, log-probabilities of OpenAI's shape, gives its tokens. */
  colour(prompt, { tokens, token_logprobs: logprobs }) {
    const spans = [];
    const rows = [];
    let end = 0;
    let bits = 0;
    tokens.forEach((text, index) => {
      end += text.length;
      if (end <= prompt.length || logprobs[index] === null) return;
      const own = text.slice(-(end - prompt.length)); // a token may have begun in the prompt
      const probability = Math.exp(logprobs[index]);
      const surprise = -logprobs[index] / Math.LN2;
      const level = LEAST.findIndex((least) => probability >= least);
      const title = `${percent(probability)}, ${surprise.toFixed(1)} bits`;
      spans.push(element("span", { class: `s${level < 0 ? LEAST.length : level}`, title }, own));
      const cells = [percent(probability), surprise.toFixed(1)].map((cell) => element("td", {}, cell));
      rows.push(element("tr", {}, element("th", { scope: "row" }, JSON.stringify(own)), ...cells));
      bits += surprise;
    });
    if (!rows.length) return;
    this.text.replaceChildren(element("span", { class: "prompt" }, prompt), ...spans);
    this.table.replaceChildren(...rows);
    this.tokens.hidden = false;
    this.dd.own.textContent = (2 ** (bits / rows.length)).toFixed(1);
  }
}
