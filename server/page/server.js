// Requests to the server: the key, errors as sentences, and streams of events.

import { apiKey } from "./stored.js";
import { duration, sentence } from "./words.js";

/** What went wrong, as a sentence for people; `status` is 0 where nothing answered. */
export class Problem extends Error {
  constructor(words, status = 0) {
    super(words);
    this.status = status;
  }
}

/** Asks the server; with a `body` by POST. Raises `Problem`, and `AbortError` by the `signal`. */
export async function ask(path, { body, signal } = {}) {
  const headers = apiKey() ? { Authorization: `Bearer ${apiKey()}` } : {};
  if (body) headers["Content-Type"] = "application/json";
  const options = body ? { method: "POST", body: JSON.stringify(body) } : {};
  let response;
  try {
    response = await fetch(path, { ...options, headers, signal, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The server cannot be reached. Is it still running?");
  }
  if (!response.ok) throw await problemOf(response);
  return response;
}

async function problemOf(response) {
  let told = "";
  try {
    told = (await response.json()).error.message.replace(/\.$/, "");
  } catch { /* whatever stands between answered, in its own words */ }
  const { status } = response;
  const wait = Number(response.headers.get("Retry-After"));
  const later = wait ? ` Try again in ${duration(1000 * wait)}.` : "";
  const words = {
    401: apiKey() ? "The server does not accept this key." : "This server asks for a key.",
    403: `The server does not allow this: ${told}.`,
    413: "This conversation has become too long to be sent. Begin a new one.",
    429: `The server has no time for this now: ${told}.${later}`,
    503: `The server cannot answer now: ${told}.${later}`,
  };
  const other = status < 500 ? `The server does not accept this: ${told}` : `The server failed: ${told}`;
  return new Problem(sentence(told || status === 401 ? (words[status] ?? other) : `The server answered with status ${status}`), status);
}

/** Yields the objects of a response's server-sent events. Raises `Problem` for one that is an error. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        if (!block.startsWith("data: ") || block === "data: [DONE]") continue;
        const event = JSON.parse(block.slice(6));
        if (event.error) throw new Problem(sentence(`The answer broke off: ${event.error.message}`), 500);
        yield event;
      }
    }
  } catch (error) {
    if (error instanceof TypeError) throw new Problem("The connection broke off before the end of the answer.");
    throw error;
  }
}
