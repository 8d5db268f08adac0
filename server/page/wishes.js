// "Speed or quality": one control, what it asks of the server, and what that means in a sentence.

const smallest = (status) => status.variants.reduce((a, b) => (b.bytes < a.bytes ? b : a));
const shallowest = (status) => status.readers.reduce((a, b) => ((b.compute ?? 1) < (a.compute ?? 1) ? b : a));

/** From speed to quality: a name, the `trimtab` object of a request, and a sentence. */
export const LEVELS = [
  {
    name: "Fastest",
    hints: (status) => ({
      variant: smallest(status).name,
      read: status.readers.length ? shallowest(status).name : "full",
    }),
    words: (status) => `The smallest model, ${smallest(status).name}, answers always: quick, and often wrong.`,
  },
  {
    name: "Speed first",
    hints: () => ({ ttft_ms: 500, tpot_ms: 50, narrow: true }),
    words: () => "The first word within half a second, then 20 tokens a second, by a smaller model where the whole one takes longer.",
  },
  {
    name: "Balanced",
    hints: () => ({}),
    words: () => "The server decides: the whole model while there is time for it, a smaller one while others wait.",
  },
  {
    name: "Quality first",
    hints: () => ({ max_loss: 0.1, ttft_ms: 30000 }),
    words: () => "Only shortcuts that hardly change the answer; you may wait up to half a minute.",
  },
  {
    name: "Best quality",
    hints: () => ({ variant: "base", read: "full" }),
    words: () => "The whole model reads and writes all of it, however long it takes.",
  },
];
export const BALANCED = 2;

const ALONE = "This model has no smaller variants yet, so this changes nothing but what is asked of the queue.";

/** Returns what a level or exact wishes ask of the server. Wishes that are not empty win. */
export function hintsOf(level, exact, status) {
  const wished = Object.entries(exact).filter(([, value]) => value !== "" && value !== null);
  if (wished.length) return Object.fromEntries(wished);
  return status ? LEVELS[level].hints(status) : {};
}

/** Returns the sentence of a level or of exact wishes. */
export function wishWords(level, exact, status) {
  const parts = [
    exact.variant && `${exact.variant} writes`,
    exact.read && (exact.read === "full" ? "the prompt is read in full" : `the prompt is read by ${exact.read}`),
    exact.ttft_ms && `the first word comes within ${exact.ttft_ms} ms`,
    exact.tpot_ms && `each further token within ${exact.tpot_ms} ms`,
    exact.max_loss !== "" && exact.max_loss !== undefined && `at most ${exact.max_loss} nats a token are lost`,
  ].filter(Boolean);
  if (parts.length) return `Your exact wishes below count: ${parts.join(", ")}.`;
  if (!status) return "";
  const single = status.variants.length === 1 && !status.readers.length;
  return single && level !== BALANCED ? ALONE : LEVELS[level].words(status);
}
