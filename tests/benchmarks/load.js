// Clients that wait for whole answers: URL, BODY, CLIENTS and REQUESTS come from the environment.
import http from "k6/http";
import { Counter, Trend } from "k6/metrics";

export const options = {
  scenarios: {
    clients: {
      executor: "per-vu-iterations",
      vus: Number(__ENV.CLIENTS),
      iterations: Number(__ENV.REQUESTS),
      maxDuration: "10m",
    },
  },
};

const begun = new Trend("begun");
const ended = new Trend("ended");
const refused = new Counter("refused");

export default function () {
  begun.add(Date.now());
  const answer = http.post(`${__ENV.URL}/generate`, __ENV.BODY, {
    headers: { "Content-Type": "application/json" },
    timeout: "5m",
  });
  ended.add(Date.now());
  refused.add(answer.status === 200 ? 0 : 1);
}

export function handleSummary(data) {
  const m = data.metrics;
  const result = {
    milliseconds: m.ended.values.max - m.begun.values.min,
    answers: m.http_reqs.values.count,
    refused: m.refused.values.count,
  };
  return { stdout: JSON.stringify(result) + "\n" };
}
