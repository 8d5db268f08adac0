// Small charts of the last two minutes.

import { drawn, element } from "./dom.js";

const SECONDS = 120;
const GAP = 3.5;  // seconds between samples over which no line is drawn
const [WIDTH, HEIGHT, MARGIN] = [300, 44, 2];

/** A chart of one or more values of the samples, with what it shows now in words.
 *
 * `lines` are names of values, `most(samples)` is the top of the scale, and `words(sample, samples)`
 * what is written beside the title.
 */
export class Chart {
  constructor(title, { lines, most, words }) {
    Object.assign(this, { title, lines, most, words });
    this.now = element("span", { className: "now" });
    this.drawing = drawn("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", preserveAspectRatio: "none" });
    this.element = element("figure", { className: "chart" },
      element("figcaption", {}, element("span", {}, title), this.now), this.drawing);
  }

  /** Draws the samples, each an object with a `time` in seconds, the oldest first. */
  show(samples) {
    const last = samples.at(-1);
    if (!last) return;
    const words = this.words(last, samples);
    this.now.textContent = words;
    this.drawing.setAttribute("aria-label", `${this.title} in the last two minutes; now ${words}`);
    const most = this.most(samples);
    const x = (time) => WIDTH - (WIDTH * (last.time - time)) / SECONDS;
    const y = (value) => HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * Math.min(1, value / most);
    const paths = this.lines.flatMap((name) =>
      runsOf(samples, name).map((run) => path(run.map((one) => [x(one.time), y(one[name])]), name)));
    this.drawing.replaceChildren(...paths);
  }
}

/** Returns the samples between gaps: where the value is missing, or nothing was sampled. */
function runsOf(samples, name) {
  const runs = [];
  let before = null;
  for (const one of samples) {
    if (one[name] !== null) {
      if (before && before[name] !== null && one.time - before.time < GAP) runs.at(-1).push(one);
      else runs.push([one]);
    }
    before = one;
  }
  return runs;
}

/** Returns a line and the area under it; a single sample is a short stroke. */
function path(points, name) {
  if (points.length === 1) points = [[points[0][0] - 2, points[0][1]], points[0]];
  const line = points.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join(" L");
  const group = drawn("g", { class: name });
  const [left, right] = [points[0][0].toFixed(1), points.at(-1)[0].toFixed(1)];
  group.append(
    drawn("path", { class: "area", d: `M${left},${HEIGHT} L${line} L${right},${HEIGHT} Z` }),
    drawn("path", { class: "line", d: `M${line}`, "vector-effect": "non-scaling-stroke" }));
  return group;
}
