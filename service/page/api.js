/** Asking the service. The key, if it wants one, is kept for the tab. */
const BASE = new URL("..", import.meta.url);
const NAME = "ttgpt-key";

export class RefusedError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

export const key = {
  get: () => sessionStorage.getItem(NAME),
  set: (value) => sessionStorage.setItem(NAME, value),
  forget: () => sessionStorage.removeItem(NAME),
};

/** Returns what a route answers to GET, or to POST if there is a body; throws the service's words as RefusedError. */
export async function ask(path, body, signal) {
  const headers = {};
  if (key.get()) headers.authorization = `Bearer ${key.get()}`;
  if (body) headers["content-type"] = "application/json";
  const options = { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal };
  const answer = await fetch(new URL(path, BASE), { ...options, cache: "no-store", credentials: "omit" });
  if (answer.ok) return answer;
  const { error } = await answer.json().catch(() => ({}));
  throw new RefusedError(error?.message ?? error ?? `The service answered ${answer.status}.`, answer.status);
}

/** Yields the server-sent events of a route, all that have come at a time. */
export async function* events(path, body, signal) {
  const answer = await ask(path, body, signal);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    const come = blocks.map((block) => JSON.parse(block.slice("data:".length)));
    const failed = come.find((event) => event.error);
    if (failed) throw new RefusedError(failed.error);
    if (come.length) yield come;
  }
}
