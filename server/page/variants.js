// The variants by speed and quality, which of them answered lately, and the latest answers.

import { $, drawn, element } from "./dom.js";
import { meterOf } from "./host.js";
import { depth, duration, ending, kind, percent, why } from "./words.js";

const SHOWN = 12;
const [LEFT, RIGHT, TOP, BOTTOM] = [40, 350, 16, 210];

export function showVariants(status) {
  showPlot(status);
  showMix(status);
  showLatest(status);
}

const writerOf = (answer) => answer.last_variant ?? answer.action.split("+")[0];

function showPlot(status) {
  const points = status.variants.filter((one) => one.kl !== null);
  const least = Math.min(...points.map((one) => one.bytes), 0.9);
  const most = Math.max(...points.map((one) => one.kl), 0.1);
  const x = (bytes) => LEFT + 10 + ((bytes - least) / (1 - least)) * (RIGHT - LEFT - 50);
  const y = (kl) => BOTTOM - 10 - (kl / most) * (BOTTOM - TOP - 25);
  const mark = (at, down, anchor, words) => drawn("text", { x: at, y: down, "text-anchor": anchor }, words);
  const parts = [
    drawn("path", { class: "axis", d: `M${LEFT},${TOP} V${BOTTOM} H${RIGHT}` }),
    mark(RIGHT, 238, "end", "share of the model read for a token"),
    mark(4, 10, "start", "loss, nats"),
    mark(LEFT - 4, y(most) + 4, "end", most.toFixed(1)),
    mark(LEFT - 4, y(0) + 4, "end", "0"),
    mark(x(least), 223, "middle", percent(least)),
    mark(x(1), 223, "middle", "100 %"),
    drawn("polyline", { class: "front", points: points.map((one) => `${x(one.bytes)},${y(one.kl)}`).join(" ") }),
  ];
  for (const one of points) {
    const point = drawn("circle", { cx: x(one.bytes), cy: y(one.kl), r: 4, class: one.trusted ? "" : "distrusted" });
    parts.push(point, mark(x(one.bytes) + 6, y(one.kl) - 5, "start", one.name));
  }
  const last = status.recent[0] && points.find((one) => one.name === writerOf(status.recent[0]));
  if (last) parts.push(drawn("circle", { class: "live", cx: x(last.bytes), cy: y(last.kl), r: 8 }));
  $("plot").replaceChildren(...parts);
  $("plot").setAttribute("aria-label", plotWords(points));
}

const plotWords = (points) => points.map((one) =>
  `${one.name} reads ${percent(one.bytes)} of the model and loses ${one.kl.toFixed(2)} nats a token`).join("; ");

/** Shows which variants and readers the latest answers came from, each as a share of them. */
function showMix(status) {
  const answers = status.recent.filter((one) => one.finish_reason !== "refused");
  const show = (id, names, nameOf) => $(id).replaceChildren(...names.map((name) => {
    const share = answers.filter((one) => nameOf(one) === name).length / (answers.length || 1);
    return meterOf([name, { share, words: percent(share) }]);
  }));
  show("written-by", status.variants.map((one) => one.name), writerOf);
  show("read-by", ["full", ...status.readers.map((one) => one.name)], (one) => one.read);
}

function showLatest(status) {
  const latest = status.recent.slice(0, SHOWN).map((one) => element("li", {}, latestWords(one, status)));
  $("latest").replaceChildren(...(latest.length ? latest : [element("li", {}, "none yet")]));
}

/** Returns a finished request in words, whoever asked it. */
function latestWords(one, status) {
  const time = new Date(1000 * one.time).toLocaleTimeString();
  const decision = { ...one, variant: writerOf(one) };
  if (one.finish_reason === "refused") return `${time}: ${why(decision)}`;
  const parts = [
    `${decision.variant}, ${depth(one.read, status)}`,
    `${kind(decision)} ${why(decision)}`,
    `${one.output_tokens} tokens${one.tpot ? ` at ${(1 / one.tpot).toFixed(0)} a second` : ""}`,
    ...(one.ttft === null ? [] : [`first word after ${duration(1000 * one.ttft)}`]),
    ...(one.finish_reason === "stop" ? [] : [ending(one.finish_reason)]),
  ];
  return `${time}: ${parts.join("; ")}`;
}
