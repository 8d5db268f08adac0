// One answer: what is asked for it, and how it arrives.

import { ask, events } from "./server.js";

/** Returns an answer to which nothing has come yet; `hints` are the request's `trimtab` object. */
export function newAnswer(hints, seed) {
  return { text: "", thoughts: "", state: "writing", hints, seed, decision: null, times: {} };
}

/** Returns a conversation's messages up to a place, as the server takes them. */
export function historyOf(chat, end) {
  const sent = [];
  const system = chat.settings.system.trim();
  if (system) sent.push({ role: "system", content: system });
  for (let at = 0; at < end; at += 2) {
    const [question, { answers, chosen }] = [chat.messages[at], chat.messages[at + 1]];
    if (!answers[chosen].text) continue;  // a question without an answer is left out
    sent.push({ role: "user", content: question.text });
    sent.push({ role: "assistant", content: answers[chosen].text });
  }
  return [...sent, { role: "user", content: chat.messages[end].text }];
}

/** Lets the server write an answer. It ends as `done`, `stopped` or `failed`; nothing is raised. */
export async function write(answer, messages, settings, { signal, changed }) {
  const sent = performance.now();
  try {
    const response = await ask("v1/chat/completions", { body: bodyOf(answer, messages, settings), signal });
    for await (const event of events(response)) {
      take(answer, event, performance.now() - sent);
      changed();
    }
    answer.state = "done";
  } catch (error) {
    answer.state = error.name === "AbortError" ? "stopped" : "failed";
    if (answer.state === "failed") answer.error = { words: error.message, status: error.status ?? 0 };
  }
  answer.times.all = performance.now() - sent;
  changed();
}

function bodyOf(answer, messages, settings) {
  const body = {
    messages,
    seed: answer.seed,
    stream: true,
    stream_options: { include_usage: true },
    trimtab: answer.hints,
  };
  if (settings.tokens !== null) body.max_tokens = settings.tokens;
  if (settings.temperature !== null) body.temperature = settings.temperature;
  return body;
}

/** Adds an event that came after so many milliseconds. */
function take(answer, event, milliseconds) {
  if (event.trimtab) answer.decision = event.trimtab;
  if (event.usage) answer.usage = event.usage;
  answer.id = event.id;
  const choice = event.choices?.[0];
  if (!choice) return;
  const { content, reasoning_content: thoughts } = choice.delta;
  if (content) answer.text += content;
  if (thoughts) answer.thoughts += thoughts;
  if (content || thoughts) answer.times.first ??= milliseconds;
  if (choice.finish_reason) answer.finish = choice.finish_reason;
}
