"""The requests of a replay: a trace's arrivals and lengths, scaled to this machine."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from benchmarks.replay.long_prompts import prompts_of_lengths
from benchmarks.replay.open_loop import ScheduledRequest
from policies.simulation.traffic import Arrival, Lengths, read_trace, scaled, synthetic
from pruners.data.corpus import read_corpus
from server.jobs.prompt_losses import read_prompts

MAX_OUTPUT, MAX_PROMPT = 200, 400  # tokens, with lengths of short chats
PROBED = 48
"""How many requests tell how fast the base is."""


@dataclass(frozen=True, slots=True)
class TraceSource:
    """Where requests are from: a trace (None: drawn arrivals), how its `lengths` are scaled, and a
    file or data set of `prompts`. At most `limit` requests are read."""

    trace: Path | None
    prompts: str
    lengths: Lengths = "prompts"
    limit: int = 4000

    def arrivals(self) -> list[Arrival]:
        """Return the arrivals with lengths that suit this machine. Raises `TrafficError`."""
        read = (
            synthetic(self.limit, 0) if self.trace is None else read_trace(self.trace, self.limit)
        )
        return scaled(read, self.lengths)

    def requests(self, tokenizer: PreTrainedTokenizerBase) -> list[ScheduledRequest]:
        """Return the requests with real prompts.

        With lengths of short chats each has the prompt of the same rank by length. With the trace's
        own, prompts are joined from several texts until they are as long as the trace says.
        """
        if self.lengths == "prompts":
            return _ranked(self.arrivals(), self.prompts, tokenizer)
        arrivals = self.arrivals()
        made = prompts_of_lengths(self.prompts, [a.prompt for a in arrivals], tokenizer)
        return [
            ScheduledRequest(one.at, text, tokens, one.output)
            for one, (text, tokens) in zip(arrivals, made, strict=True)
        ]


def _ranked(
    arrivals: Sequence[Arrival], prompts: str, tokenizer: PreTrainedTokenizerBase
) -> list[ScheduledRequest]:
    """Return the requests, each with the real prompt of the same rank by length.

    The tokens that all prompts begin with (the frame of a chat) are cached, and not counted.
    """
    prompts_read = read_prompts(read_corpus(prompts), tokenizer, len(arrivals))
    first, last = min(one.tokens for one in prompts_read), max(one.tokens for one in prompts_read)
    frame = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), 0)
    sized = sorted((len(one.tokens) - frame, one.text) for one in prompts_read)
    sized = [(size, text) for size, text in sized if size <= MAX_PROMPT]
    if not sized:
        raise SystemExit(f"{prompts} holds no prompt of up to {MAX_PROMPT} tokens")
    found = []
    order = sorted(range(len(arrivals)), key=lambda i: arrivals[i].prompt)
    for place, index in enumerate(order):
        size, text = sized[place * len(sized) // len(order)]
        one = arrivals[index]
        found.append((index, ScheduledRequest(one.at, text, size, min(MAX_OUTPUT, one.output))))
    return [request for _, request in sorted(found, key=lambda pair: pair[0])]


def window(
    requests: Sequence[ScheduledRequest], first: int, seconds: float, rate: float
) -> list[ScheduledRequest]:
    """Return the requests from `first` on that arrive in `seconds` at this mean rate a second."""
    part = requests[first : first + max(8, int(seconds * rate))]
    stretch = len(part) / rate / max(part[-1].at - part[0].at, 1e-9)
    return [replace(r, at=(r.at - part[0].at) * stretch) for r in part]


def probe_requests(requests: Sequence[ScheduledRequest], turn: int) -> list[ScheduledRequest]:
    """Return a few of these requests, of all lengths, with another beginning in each turn.

    So no prefix cache helps.
    """
    sized = sorted(requests, key=lambda request: request.output)
    every = max(1, len(sized) // PROBED)
    found = sized[every // 2 :: every][:PROBED]
    found.sort(key=lambda request: request.at)
    more = len(str(turn)) + 1  # a token for each digit, and one for the point
    return [
        replace(r, prompt=f"{turn}. {r.prompt}", prompt_tokens=r.prompt_tokens + more)
        for r in found
    ]
