// The badge of an answer, which opens the whole decision.

import { element } from "./dom.js";
import { capitalised, depth, duration, ending, kind, loss, percent, readTokens, sentence, why } from "./words.js";

let opened = 0;

/** Returns an answer's badge, and what it opens. `status` may be null. */
export function badgeOf(answer, status) {
  const { decision } = answer;
  if (!decision) return [];
  const { measured_tpot_ms: perToken } = decision;
  const speed = perToken ? [`${(1000 / perToken).toFixed(0)} tokens/s`] : [];
  const id = `decision-${(opened += 1)}`;
  const details = element("div", { id, className: "decision", hidden: true });
  const badge = element("button", { type: "button", className: "badge", "aria-expanded": "false", "aria-controls": id },
    element("b", {}, writer(decision)),
    ["", depth(decision.read, status), `${kind(decision)} ${why(decision)}`, ...speed].join(" · "));
  badge.addEventListener("click", () => {
    details.hidden = !details.hidden;
    badge.setAttribute("aria-expanded", String(!details.hidden));
    if (!details.hidden) details.replaceChildren(...decisionOf(answer, status));
  });
  return [badge, details];
}

const narrowedTo = (decision) => decision.narrowed_to?.at(-1);
const writer = (decision) => (narrowedTo(decision) ? `${decision.variant}, then ${narrowedTo(decision)}` : decision.variant);

function decisionOf(answer, status) {
  const { decision } = answer;
  const told = sentence(`${capitalised(kind(decision))} ${why(decision)}`);
  return [
    element("p", {}, [told, readTokens(decision)].filter(Boolean).join(" ")),
    listOf(lines(answer, status)),
    timesOf(answer),
    element("p", { className: "note" }, "Predicted is what the controller expected when it chose; the server and this browser measured the rest."),
  ];
}

function lines(answer, status) {
  const { decision, usage } = answer;
  const variant = status?.variants.find((one) => one.name === decision.variant);
  const size = variant ? ` (reads ${percent(variant.bytes)} of the whole model for a token)` : "";
  const cached = usage?.prompt_tokens_details?.cached_tokens;
  return {
    "Written by": writer(decision) + size,
    "Prompt": depth(decision.read, status),
    "Expected loss": loss(decision.predicted_loss),
    "Others waiting then": decision.waiting,
    "Complexity of the prompt": `${percent(decision.complexity)}, from plain to hard`,
    "Cached tokens": decision.kv_budget ? `at most ${decision.kv_budget}` : "all kept",
    "Policy": decision.policy,
    "Prompt's tokens": usage && `${usage.prompt_tokens}${cached ? `, ${cached} known from before` : ""}`,
    "Answer's tokens": usage?.completion_tokens,
    "End": answer.state === "stopped" ? "you stopped it" : answer.finish && ending(answer.finish),
    "Asked for": Object.entries(answer.hints).map(([name, value]) => `${name} ${value}`).join(", ") || "nothing in particular",
    "Seed": answer.seed,
    "Request": answer.id,
  };
}

function listOf(entries) {
  const known = Object.entries(entries).filter(([, value]) => value !== undefined && value !== null && value !== "");
  return element("dl", {}, ...known.flatMap(([name, value]) => [
    element("dt", {}, name), element("dd", {}, String(value)),
  ]));
}

function timesOf(answer) {
  const { decision } = answer;
  const rows = [
    ["In the queue", decision.predicted_queue_ms, decision.measured_queue_ms],
    ["Reading", undefined, decision.measured_reading_ms],
    ["To the first word", decision.predicted_ttft_ms, decision.measured_ttft_ms, answer.times.first],
    ["Each further token", decision.predicted_tpot_ms, decision.measured_tpot_ms],
    ["Writing", undefined, decision.measured_writing_ms],
    ["In all", undefined, undefined, answer.times.all],
  ];
  const cell = (value) => element("td", {}, value === undefined ? "" : duration(value));
  return element("table", {},
    element("thead", {}, element("tr", {}, ...["Time", "Predicted", "Server", "Here"].map((name) =>
      element("th", { scope: "col" }, name)))),
    element("tbody", {}, ...rows.map(([name, predicted, measured, here]) =>
      element("tr", {}, element("th", { scope: "row" }, name), ...[predicted, measured, here].map(cell)))));
}
