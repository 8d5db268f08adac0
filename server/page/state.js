// What the server is ready for, in words.

import { percent, sentence } from "./words.js";

const STATES = {
  connecting: () => ({ short: "connecting", words: "Connecting to the server." }),
  ready: (status) => ({ short: load(status), words: "The server is ready.", ready: true }),
  trouble: (status) => ({ short: "not ready", words: sentence(`The server takes no requests: ${status.trouble}`) }),
  locked: (words) => ({ short: "locked", words }),
  loading: ({ stage, progress }) => ({
    short: "loading",
    words: `The server is loading the model (${stage}${progress === null ? "" : `, ${percent(progress)}`}). You can write your question meanwhile.`,
    progress,
  }),
  draining: () => ({
    short: "shutting down",
    words: "The server is shutting down: it ends the answers that it has begun, and takes no new questions.",
  }),
  unreachable: () => ({ short: "no connection", words: "The server cannot be reached. The page tries again." }),
};

const load = ({ load: { running, waiting } }) =>
  waiting ? `busy: ${waiting} waiting` : running ? `writing ${running}` : "ready";

/** Returns a state by its name: `short` and whole `words`, `ready` for questions, maybe a `progress`. */
export function stateOf(name, told) {
  return { name, ready: false, ...STATES[name](told) };
}

/** Returns the state by `/health`, which says it while nothing else can be had. */
export async function health() {
  try {
    const response = await fetch("health", { cache: "no-store" });
    const told = await response.json();
    if (told.status in STATES) return stateOf(told.status, told);
    const trouble = told.error?.message ?? `status ${response.status}`;
    return stateOf("trouble", { trouble: response.ok ? "its state cannot be read" : trouble });
  } catch {
    return stateOf("unreachable");
  }
}
