// The live page: what the host is doing, who answered and why, and a place to ask.

const $ = (id) => document.getElementById(id);
const text = (value) => document.createTextNode(value);

function element(name, fields = {}, ...children) {
  const made = document.createElement(name);
  Object.assign(made, fields);
  made.append(...children);
  return made;
}

function svg(name, attributes, content) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (content !== undefined) made.append(text(content));
  return made;
}

const headers = () => {
  const key = $("key").value || sessionStorage.getItem("trimtab-key");
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
};

const percent = (ratio) => `${Math.round(100 * ratio)} %`;
const gib = (bytes) => `${(bytes / 2 ** 30).toFixed(1)} GiB`;
const seconds = (value) =>
  value === null || value === undefined ? "" : value < 1 ? `${Math.round(1e3 * value)} ms` : `${value.toFixed(1)} s`;

// What is shown of the host: a label, a share from 0 to 1 for the meter, and words.
function gauges(status) {
  const host = status.host;
  const of = (name, share, words) => {
    const reading = host[name];
    return reading.value === null ? { missing: reading.reason } : { share: share(reading.value), words: words(reading.value) };
  };
  const total = host.memory_total_bytes.value;
  const charge = of("battery_charge_ratio", (v) => v, percent);
  if (charge.words && host.on_battery.value === 1) charge.words += ", on battery";
  return [
    ["Queue", { share: status.load.waiting / 32, words: `${status.load.running} running, ${status.load.waiting} waiting` }],
    ["KV cache", { share: status.load.kv_ratio, words: percent(status.load.kv_ratio) }],
    ["Processor", of("cpu_utilization_ratio", (v) => v, percent)],
    ["Memory in use", of("memory_available_bytes", (v) => 1 - v / total, (v) => `${gib(v)} free`)],
    ["CPU pressure", of("cpu_pressure_ratio", (v) => v, percent)],
    ["Memory pressure", of("memory_pressure_ratio", (v) => v, percent)],
    ["Temperature", of("temperature_celsius", (v) => v / 110, (v) => `${Math.round(v)} °C`)],
    ["Battery", charge],
    ...status.gpus.map((gpu) => [
      gpu.name,
      gpu.memory_used_bytes.value === null
        ? { missing: gpu.memory_used_bytes.reason }
        : { share: gpu.memory_used_bytes.value / gpu.memory_total_bytes.value, words: gib(gpu.memory_used_bytes.value) },
    ]),
  ];
}

const gauge = ([label, found]) =>
  element("div", { className: "gauge" },
    element("span", {}, text(label)),
    found.missing === undefined
      ? element("meter", { min: 0, max: 1, value: Math.min(1, found.share), ariaLabel: label })
      : element("span", { className: "missing", title: found.missing }, text("no reading")),
    element("span", {}, text(found.words ?? "")));

function showGauges(status) {
  $("gauges").replaceChildren(...gauges(status).map(gauge));
}

// What is learned of the model in the background, and how far that is.
function showLearning(status) {
  const learning = status.learning;
  $("learning").hidden = learning.state === "off";
  const later = learning.next_start.length ? ` After the next start: ${learning.next_start.join(", ")}.` : "";
  $("learning-state").textContent = `${learning.state}${learning.reason ? `: ${learning.reason}` : ""}.${later}`;
  $("stages").replaceChildren(
    ...learning.stages.map((stage) => {
      const now = stage.state === "now";
      const words = now && learning.step ? `${learning.step.toLowerCase()}, ${percent(learning.progress)}` : stage.state;
      return gauge([stage.title, { share: now ? learning.progress : Number(stage.state === "done"), words }]);
    }),
  );
}

// Which variants and readers the latest answers came from, each as a share of them.
function showMix(status) {
  const answers = status.recent.filter((one) => one.finish_reason !== "refused");
  const show = (id, names, nameOf) =>
    $(id).replaceChildren(
      ...names.map((name) => {
        const share = answers.filter((one) => nameOf(one) === name).length / (answers.length || 1);
        return gauge([name, { share, words: percent(share) }]);
      }),
    );
  show("written-by", status.variants.map((v) => v.name), (one) => one.action.split("+")[0]);
  show("read-by", ["full", ...status.readers.map((r) => r.name)], (one) => one.read);
}

// How an answer's prompt was read: by what, and which share of the compute that took.
function readBy(one) {
  if (one.read_compute === undefined) return one.read;
  const { shallow, cached } = one.read_tokens;
  const parts = [...(shallow ? [`${shallow} tokens shallow`] : []), ...(cached ? [`${cached} cached`] : [])];
  return parts.length ? `${one.read} (${parts.join(", ")}; ${percent(one.read_compute)} of the work)` : one.read;
}

function showPlot(status) {
  const [left, right, top, bottom] = [40, 450, 10, 250];
  const points = status.variants.filter((v) => v.kl !== null);
  const least = Math.min(...points.map((v) => v.bytes), 0.9);
  const most = Math.max(...points.map((v) => v.kl), 0.1);
  const x = (bytes) => left + 10 + ((bytes - least) / (1 - least || 1)) * (right - left - 40);
  const y = (kl) => bottom - 10 - (kl / most) * (bottom - top - 25);
  const plot = $("plot");
  plot.replaceChildren(
    svg("line", { class: "axis", x1: left, x2: right, y1: bottom, y2: bottom }),
    svg("line", { class: "axis", x1: left, x2: left, y1: top, y2: bottom }),
    svg("text", { x: right, y: 272, "text-anchor": "end" }, "share of the base's bytes read for a token"),
    svg("text", { x: 4, y: top + 8 }, "loss, nats"),
    svg("text", { x: left - 4, y: y(most) + 4, "text-anchor": "end" }, most.toFixed(1)),
    svg("text", { x: left - 4, y: y(0) + 4, "text-anchor": "end" }, "0"),
    svg("text", { x: x(least), y: 262, "text-anchor": "middle" }, least.toFixed(2)),
    svg("text", { x: x(1), y: 262, "text-anchor": "middle" }, "1"),
    svg("polyline", { class: "front", points: points.map((v) => `${x(v.bytes)},${y(v.kl)}`).join(" ") }),
  );
  for (const v of points) {
    const point = svg("circle", { cx: x(v.bytes), cy: y(v.kl), r: 4, class: v.trusted ? "" : "distrusted" });
    point.append(svg("title", {}, `${v.name}: ${v.bytes.toFixed(3)} of the bytes, ${v.kl.toFixed(3)} nats a token`));
    plot.append(point, svg("text", { x: x(v.bytes) + 6, y: y(v.kl) - 5 }, v.name));
  }
  const last = status.recent[0] && points.find((v) => v.name === status.recent[0].last_variant);
  if (last) plot.append(svg("circle", { class: "live", cx: x(last.bytes), cy: y(last.kl), r: 8 }));
}

function showRecent(status) {
  if (!status.recent.length) return;
  $("recent").replaceChildren(
    ...status.recent.slice(0, 12).map((one) => {
      const writer = one.action.replace(`+${one.read}`, "");  // the reader has a column of its own
      const narrowed = one.last_variant && one.last_variant !== one.action.split("+")[0];
      const cells = [
        new Date(1e3 * one.time).toLocaleTimeString(),
        narrowed ? `${writer}, then ${one.last_variant}` : writer,
        readBy(one),
        one.reason.replaceAll("_", " "),
        one.output_tokens ?? "",
        seconds(one.ttft),
        one.tpot ? (1 / one.tpot).toFixed(0) : "",
        one.predicted_loss === null ? "not measured" : one.predicted_loss.toFixed(3),
        one.finish_reason,
      ];
      return element("tr", {}, ...cells.map((cell) => element("td", {}, text(cell))));
    }),
  );
}

const known = {};
function offer(id, names) {
  if (names.join() === known[id]) return;
  known[id] = names.join();
  $(id).replaceChildren(
    element("option", { value: "" }, text("chosen by the controller")),
    ...names.map((name) => element("option", { value: name }, text(name))),
  );
}

function showChoices(status) {
  offer("variant", status.variants.map((v) => v.name));
  offer("read", ["full", ...status.readers.map((r) => r.name)]);
}

async function refresh() {
  try {
    const response = await fetch("trimtab/status", { headers: headers() });
    $("key-field").hidden = response.status !== 401;
    if (!response.ok) throw new Error(response.status === 401 ? "an API key is needed" : `status ${response.status}`);
    const status = await response.json();
    $("model").textContent = status.model;
    $("state").textContent = `policy ${status.policy}`;
    for (const show of [showGauges, showPlot, showMix, showLearning, showRecent, showChoices]) show(status);
    if ($("key").value) sessionStorage.setItem("trimtab-key", $("key").value);
  } catch (error) {
    $("state").textContent = `no connection: ${error.message}`;
  }
  setTimeout(refresh, document.hidden ? 5000 : 1000);
}

const sliders = {
  ttft: (v) => `${(v / 1e3).toFixed(1)} s`,
  tpot: (v) => (v === 0 ? "any time" : `${v} ms`),
  loss: (v) => (v === 2 ? "anything" : v === 0 ? "nothing" : `${v.toFixed(2)} nats a token`),
  tokens: (v) => `${v} tokens`,
};
for (const [id, words] of Object.entries(sliders)) {
  const show = () => ($(`${id}-shown`).textContent = words(Number($(id).value)));
  $(id).addEventListener("input", show);
  show();
}

function wanted() {
  const [ttft, tpot, loss] = ["ttft", "tpot", "loss"].map((id) => Number($(id).value));
  const trimtab = { ttft_ms: ttft };
  if (tpot) trimtab.tpot_ms = tpot;
  if (loss < 2) trimtab.max_loss = loss;
  for (const id of ["variant", "read"]) if ($(id).value) trimtab[id] = $(id).value;
  return {
    messages: [{ role: "user", content: $("prompt").value }],
    max_tokens: Number($("tokens").value),
    stream: true,
    trimtab,
  };
}

function showDecision(decision) {
  const lines = {
    variant: decision.narrowed_to ? `${decision.variant}, then ${decision.narrowed_to}` : decision.variant,
    read: readBy(decision),
    why: decision.reason.replaceAll("_", " "),
    "KV budget": decision.kv_budget ?? "none",
    "predicted loss": decision.predicted_loss === null ? "not measured" : `${decision.predicted_loss.toFixed(3)} nats a token`,
    "predicted first word": `${decision.predicted_ttft_ms} ms`,
    "predicted per token": `${decision.predicted_tpot_ms} ms`,
    complexity: decision.complexity,
  };
  $("decision").replaceChildren(
    ...Object.entries(lines).flatMap(([name, value]) => [
      element("dt", {}, text(name)), element("dd", {}, text(value))]),
  );
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      if (block.startsWith("data: ") && block !== "data: [DONE]") yield JSON.parse(block.slice(6));
    }
  }
}

let asking = null;
$("stop").addEventListener("click", () => asking?.abort());
$("ask").addEventListener("submit", async (event) => {
  event.preventDefault();
  asking = new AbortController();
  $("send").disabled = true;
  $("stop").disabled = false;
  $("answer").className = "";
  $("answer").textContent = "";
  $("decision").replaceChildren();
  try {
    const response = await fetch("v1/chat/completions", {
      method: "POST", headers: headers(), body: JSON.stringify(wanted()), signal: asking.signal,
    });
    if (!response.ok) throw new Error((await response.json()).error.message);
    for await (const chunk of events(response)) {
      if (chunk.error) throw new Error(chunk.error.message);
      if (chunk.trimtab) showDecision(chunk.trimtab);
      const piece = chunk.choices?.[0]?.delta?.content;
      if (piece) $("answer").append(text(piece));
    }
  } catch (error) {
    if (error.name !== "AbortError") {
      $("answer").className = "failed";
      $("answer").append(text(error.message));
    }
  } finally {
    $("send").disabled = false;
    $("stop").disabled = true;
  }
});

refresh();
