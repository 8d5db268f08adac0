// Decisions, states and numbers in words.

const SHORT_MEMORY = 0.08;  // the share below which the controller saves memory

export const percent = (ratio) => `${Math.round(100 * ratio)} %`;
export const gibibytes = (bytes) => `${(bytes / 2 ** 30).toFixed(1)} GiB`;
export const counted = (number, one, many) => `${number} ${number === 1 ? one : many}`;
export const capitalised = (text) => text.charAt(0).toUpperCase() + text.slice(1);

/** Returns a text as a sentence: with a capital letter and an end. */
export function sentence(text) {
  const trimmed = capitalised(text.trim());
  return /[.!?:]$/.test(trimmed) ? trimmed : `${trimmed}.`;
}

export function duration(milliseconds) {
  if (milliseconds === null || milliseconds === undefined) return "not known";
  return milliseconds < 1000 ? `${Math.round(milliseconds)} ms` : `${(milliseconds / 1000).toFixed(1)} s`;
}

const crowd = (waiting) => `because ${counted(waiting, "was", "were")} waiting`;

const REASONS = {
  pinned: () => "as you asked",
  base_fits: () => "since nothing spoke against it",
  queue: ({ waiting }) => (waiting ? crowd(waiting) : "because many requests were coming"),
  ttft: () => "to begin the answer in time",
  tpot: () => "to write as fast as wished",
  deadline: () => "to end the answer in time",
  battery: () => "to spare the battery",
  thermal: () => "because the machine is hot",
  energy: () => "to save energy, as the server is set",
  memory: () => "because memory was short",
  least_bad: ({ waiting }) => `${waiting ? crowd(waiting) : "as the best there was"}; nothing keeps all wishes now`,
  fixed: () => "as the server is set",
  dwell: () => "as shortly before, so that it does not change back and forth",
  floor: () => "refused: too many were waiting to keep time and quality",
  late: () => "refused: too many were waiting",
  learned: () => "as the learned policy chose",
  explored: () => "chosen at random, to learn from it",
};

/** Returns why a decision was made, such as "because 9 were waiting". */
export function why(decision) {
  const words = REASONS[decision.reason];
  return words ? words(decision) : decision.reason.replaceAll("_", " ");
}

/** Returns what a decision means for the answer, such as "smaller model". */
export function kind(decision) {
  const smaller = decision.variant !== "base";
  const quicker = decision.read !== "full";
  if (smaller) return quicker ? "smaller model and quicker reading" : "smaller model";
  if (quicker) return "whole model, quicker reading";
  return decision.kv_budget ? "whole model, shorter memory" : "whole model";
}

/** Returns how deep a prompt was read, as the reader's entry in the status has it, if there is one. */
export function depth(read, status) {
  if (read === "full") return "read in full";
  const reader = status?.readers.find((one) => one.name === read);
  return reader ? `read to layer ${reader.depth} of ${status.layers}` : `read by ${read}`;
}

/** Returns which part of a prompt was read how, or nothing before that is known. */
export function readTokens(decision) {
  const tokens = decision.read_tokens;
  if (!tokens) return "";
  const parts = [
    [tokens.full, "in full"],
    [tokens.shallow, "through the lower layers only"],
    [tokens.cached, "known from before"],
  ];
  const words = parts.filter(([number]) => number).map(([number, how]) => `${number} ${how}`);
  const list = words.length > 1 ? `${words.slice(0, -1).join(", ")} and ${words.at(-1)}` : words[0];
  const work = decision.read_compute === undefined ? "" : `: ${percent(decision.read_compute)} of the work of reading all`;
  return list ? `Of the prompt's tokens ${list}${work}.` : "";
}

export function loss(nats) {
  if (nats === null || nats === undefined) return "not measured";
  if (nats === 0) return "none";
  return `${nats.toFixed(2)} nats a token, which keeps about ${percent(Math.exp(-nats))} of the quality`;
}

const ENDS = {
  stop: "it came to its end",
  length: "it reached the most tokens that it may have",
  tool_calls: "it asks for a tool",
  abort: "it was stopped",
  error: "it failed",
};
export const ending = (reason) => ENDS[reason] ?? reason;

/** Returns what the server is doing and what that means, in a sentence or two. */
export function present(status) {
  const { running, waiting } = status.load;
  const parts = [];
  if (!running && !waiting) parts.push("Nobody else asks: the next answer can come from the whole model.");
  else if (!waiting) parts.push(`${capitalised(counted(running, "answer is", "answers are"))} being written, and nobody waits.`);
  else {
    parts.push(`${counted(running, "answer is", "answers are")} being written and ${counted(waiting, "waits", "wait")}, `
      + (status.variants.length > 1 ? "so new answers may come from a smaller model." : "so new answers take longer."));
  }
  const valueOf = (name) => status.host[name].value;
  const charge = valueOf("battery_charge_ratio");
  if (valueOf("on_battery") === 1) {
    parts.push(`The machine is on battery${charge === null ? "" : ` (${percent(charge)})`}.`);
  }
  if ((valueOf("cpu_speed_limit_ratio") ?? 1) < 1) parts.push("Heat slows the machine down.");
  const [free, total] = [valueOf("memory_available_bytes"), valueOf("memory_total_bytes")];
  if (free !== null && free < SHORT_MEMORY * total) parts.push("Memory is short.");
  return parts.join(" ");
}

/** Returns what is being learned of the model, in a sentence. */
export function learningWords(learning) {
  const stage = learning.stages.find((one) => one.state === "now");
  const doing = stage ? `${stage.title}${learning.step ? ` (${learning.step.toLowerCase()})` : ""}, ${percent(learning.progress)} done` : "";
  const words = {
    waiting: "The server will learn faster ways to answer when nobody asks anything.",
    running: `The server is learning faster ways to answer: ${doing || "it begins"}.`,
    paused: `Learning pauses while there are requests${doing ? `: ${doing}` : ""}.`,
    complete: "All that can be learned of this model is learned.",
    refused: `Nothing is learned: ${learning.reason}.`,
    failed: `Learning failed: ${learning.reason}.`,
  }[learning.state] ?? learning.state;
  const reason = ["waiting", "paused"].includes(learning.state) && learning.reason ? ` Now: ${learning.reason}.` : "";
  const later = learning.next_start.length ? ` After the next start there is also ${learning.next_start.join(", ")}.` : "";
  return words + reason + later;
}
