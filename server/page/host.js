// The server: what it does now, two minutes of it in charts, its readings, and what it learns.

import { Chart } from "./chart.js";
import { $, element } from "./dom.js";
import { ask } from "./server.js";
import { gibibytes, learningWords, percent, present } from "./words.js";

const SECONDS = 120;
const missingOr = (value, words) => (value === null ? "no reading" : words(value));

const CHARTS = [
  ["Processor", { lines: ["cpu"], most: () => 1, words: ({ cpu }) => missingOr(cpu, percent) }],
  ["Memory in use", { lines: ["memory"], most: () => 1, words: ({ memory }) => missingOr(memory, percent) }],
  ["Requests", {
    lines: ["waiting", "running"],
    most: (samples) => Math.max(4, ...samples.map((one) => Math.max(one.waiting, one.running))),
    words: ({ running, waiting }) => `${running} running, ${waiting} waiting`,
  }],
  ["Quality", {
    lines: ["quality"],
    most: () => 1,
    words: ({ quality }) => (quality === null ? "no answer just now" : `${percent(quality)} of the whole model's`),
  }],
];

/** Shows the host. It begins with the history that the server kept. */
export class HostPanel {
  constructor() {
    this.samples = [];
    this.charts = CHARTS.map(([title, what]) => new Chart(title, what));
    $("charts").replaceChildren(...this.charts.map((chart) => chart.element));
  }

  /** Reads the last two minutes, as after a start or a pause. Raises `Problem`. */
  async begin() {
    const { fields, samples } = await (await ask("trimtab/history")).json();
    this.samples = samples.map((sample) => Object.fromEntries(fields.map((name, at) => [name, sample[at]])));
  }

  async show(status) {
    const { sample } = status;
    const last = this.samples.at(-1);
    if (!last || sample.time - last.time > 10 || sample.time < last.time) await this.begin();
    this.samples.push(sample);
    this.samples = this.samples.filter((one) => sample.time - one.time <= SECONDS);
    for (const chart of this.charts) chart.show(this.samples);
    $("present").textContent = present(status);
    $("readings").replaceChildren(...readings(status).map(meterOf));
    showLearning(status.learning);
  }
}

/** Returns what is shown of the readings: a label, a share from 0 to 1, and words or what is missing. */
function readings(status) {
  const { host } = status;
  const of = (name, share, words) => {
    const { value, reason } = host[name];
    return value === null ? { missing: reason } : { share: share(value), words: words(value) };
  };
  const same = (value) => value;
  const charge = of("battery_charge_ratio", same, percent);
  if (charge.words && host.on_battery.value === 1) charge.words += ", on battery";
  return [
    ["KV cache", { share: status.load.kv_ratio, words: percent(status.load.kv_ratio) }],
    ["Free memory", of("memory_available_bytes", (v) => v / host.memory_total_bytes.value, gibibytes)],
    ["Waits for the processor", of("cpu_pressure_ratio", same, percent)],
    ["Waits for memory", of("memory_pressure_ratio", same, percent)],
    ["Temperature", of("temperature_celsius", (v) => v / 110, (v) => `${Math.round(v)} °C`)],
    ["Battery", charge],
    ...status.gpus.map((gpu) => [gpu.name, gpu.memory_used_bytes.value === null
      ? { missing: gpu.memory_used_bytes.reason }
      : { share: gpu.memory_used_bytes.value / gpu.memory_total_bytes.value, words: gibibytes(gpu.memory_used_bytes.value) }]),
  ];
}

/** Returns a labelled bar with words; what is missing says why. */
export function meterOf([label, found]) {
  const bar = found.missing === undefined
    ? element("meter", { min: 0, max: 1, value: Math.min(1, found.share), "aria-label": label })
    : element("span", { className: "missing" }, `no reading: ${found.missing}`);
  return element("div", { className: "meter" }, element("span", {}, label), bar, element("span", {}, found.words ?? ""));
}

function showLearning(learning) {
  $("learning").hidden = learning.state === "off";
  $("learning-state").textContent = learningWords(learning);
  $("stages").replaceChildren(...learning.stages.map((stage) => {
    const now = stage.state === "now";
    const share = now ? learning.progress : Number(stage.state === "done");
    return meterOf([stage.title, { share, words: now ? percent(share) : stage.state }]);
  }));
}
