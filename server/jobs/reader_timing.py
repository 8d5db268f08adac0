"""Measures how long readers take to read prompts on this device, beside reading in full."""

import time
from collections.abc import Sequence
from statistics import median

from rich.progress import Progress

from pruners.artefact.table import Table
from pruners.kv.base import SINK_TOKENS
from pruners.reading.reader import PromptReader
from pruners.support.progress import track
from pruners.variant import BASE
from server.engine.backends.base import Decoder, Segment
from server.engine.config import EngineConfig
from server.engine.loading.load import LoadedModel
from server.jobs.step_timing import TOKEN_ID, Timer, open_zeroed_decoder, wait_for

LENGTHS = (128, 512, 1024)
"""Tokens of the prompts that are timed."""
REPEATS = 9
_TYPICAL_PROMPT = 512
"""Tokens of a prompt of which the table says what share of the work a reader leaves."""


def time_readers(
    model: LoadedModel,
    lengths: Sequence[int] = LENGTHS,
    repeats: int = REPEATS,
    progress: Progress | None = None,
) -> dict[str, dict[int, float]]:
    """Return the time to read a prompt over that in full, by reader and by the prompt's tokens.

    The base reads, in steps as the engine's. It is the median of ratios, each to a measurement of
    reading in full just before. Lengths beyond the model's context are left out; the longest that
    fits stands for all if none does.
    """
    if not model.readers:
        return {}
    context = model.weights.context
    fitting = [tokens for tokens in lengths if tokens <= context] or [context]
    decoder = open_zeroed_decoder(model, max(fitting))
    timers = {
        (name, tokens): reading_timer(model, decoder, reader, tokens)
        for name, reader in [("", None), *model.readers.items()]
        for tokens in fitting
    }
    for timer in timers.values():
        timer()  # warms up
    ratios: dict[str, dict[int, list[float]]] = {}
    for _ in track(range(repeats), "Timing readers", progress):
        for tokens in fitting:
            for name in model.readers:
                in_full = timers["", tokens]()
                ratio = timers[name, tokens]() / in_full
                ratios.setdefault(name, {}).setdefault(tokens, []).append(ratio)
    return {
        name: {tokens: median(values) for tokens, values in by_tokens.items()}
        for name, by_tokens in ratios.items()
    }


def reading_timer(
    model: LoadedModel, decoder: Decoder, reader: PromptReader | None, tokens: int
) -> Timer:
    """Return what times the reading of a prompt, up to its first written token."""
    shallow = [False] * tokens if reader is None else typical_shallow(model, reader, tokens)
    depth, step = 0 if reader is None else reader.depth, EngineConfig().step_tokens
    spec = model.variants[BASE]

    def measure() -> float:
        cache = decoder.cache.open()
        assert cache.reserve(tokens)
        started = time.perf_counter()
        for first in range(0, tokens, step):
            part = shallow[first : first + step]
            outputs = int(first + len(part) == tokens)
            given = part if any(part) else None
            segment = Segment([TOKEN_ID] * len(part), cache, spec, outputs, given, depth)
            hidden = decoder.forward([segment])
        decoder.argmax(hidden[-1:])
        wait_for(decoder)
        seconds = time.perf_counter() - started
        cache.close()
        return seconds

    return measure


def typical_shallow(model: LoadedModel, reader: PromptReader, tokens: int) -> list[bool]:
    """Return which tokens of a prompt are shallow, with as many numbers as prompts usually have.

    That is the number that agrees with the reader's share of the work in the artefact's table. They
    are spread evenly.
    """
    table = Table() if model.artefact is None else model.artefact.table
    measured, shape = table.reader_cost.get(reader.name), model.weights.shape
    share = 0.0
    if reader.numbers and measured is not None:
        always = reader.ends
        least, most = (reader.cost(shape, _TYPICAL_PROMPT, n) for n in (always, _TYPICAL_PROMPT))
        share = min(max((measured.share - least) / (most - least), 0.0), 1.0)
    first, last = SINK_TOKENS + reader.turn, tokens - reader.last
    return [
        first <= place < last and int((place + 1) * share) == int(place * share)
        for place in range(tokens)
    ]
