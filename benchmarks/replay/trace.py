"""The requests of a replay: a trace's arrivals and lengths, scaled to this machine."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from benchmarks.replay.open_loop import ScheduledRequest
from policies.simulation.traffic import read_trace, shortened, synthetic
from pruners.data.corpus import read_corpus
from server.jobs.prompt_losses import read_prompts

PROMPT, OUTPUT = 80, 60
"""Median tokens of prompts and answers that the trace is scaled to."""
MAX_OUTPUT, MAX_PROMPT = 200, 400  # tokens
PROBED = 48
"""How many requests tell how fast the base is."""


def trace_requests(
    trace: Path | None, prompts: str, tokenizer: PreTrainedTokenizerBase, limit: int
) -> list[ScheduledRequest]:
    """Return the trace's requests, each with the real prompt of the same rank by length.

    The tokens that all prompts begin with (the frame of a chat) are cached, and not counted.
    """
    arrivals = synthetic(limit, 0) if trace is None else read_trace(trace, limit)
    arrivals = shortened(arrivals, PROMPT, OUTPUT)
    prompts_read = read_prompts(read_corpus(prompts), tokenizer, limit)
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
