"""Measures what a profile says of this device: times, the overhead of serving, and energy."""

import time
from typing import Any

from rich.progress import Progress

from pruners.variant import BASE
from server.engine.config import EngineConfig
from server.engine.loading.load import LoadedModel
from server.engine.offline import answer_all
from server.engine.runner_factory import build_runner
from server.engine.sampling import SamplingParams
from server.engine.sequence import GenerationRequest
from server.jobs.step_timing import (
    STEPS,
    TimedSizes,
    decode_timer,
    open_zeroed_decoder,
    time_variants,
)
from telemetry.energy import EnergyReader

_SIZES = TimedSizes(
    decode=tuple((rows, cached) for rows in (1, 2, 4, 8, 16) for cached in (128, 768)),
    prompts=(32, 128, 256),
    repeats=15,
)
_PROMPT_TOKENS, _ANSWER_TOKENS = 48, 48  # of the requests that the overhead is measured on
_PROMPT_STRIDE = 31  # of token ids, so that no two prompts begin alike
_ENERGY_SECONDS = 2.0
_ENERGY_CACHED = 128  # tokens
_JOULES = "cpu_energy_joules"


def measure_times(model: LoadedModel, progress: Progress) -> dict[str, Any]:
    """Return what `time_variants` measures, and under `device` the key of this device."""
    ((device, times),) = time_variants(model, _SIZES, progress).items()
    return {"device": device, **times}


def measure_overhead(model: LoadedModel, max_running: int) -> float:
    """Return the time of serving over that of the steps alone.

    The rest is scheduling, and turning tokens into text.
    """
    count = 3 * max_running
    slots = max(512, 2 * (_PROMPT_TOKENS + _ANSWER_TOKENS) * count)
    # Speculation would depend on the text.
    config = EngineConfig(max_running, kv_tokens=slots, speculate=False)
    runner = build_runner(model, config, free_bytes=None)
    requests = [_request(model, index) for index in range(2 * count)]
    answer_all(runner, model.tokenizer, requests[:count])  # warms up
    step_seconds: list[float] = []
    started = time.perf_counter()
    answer_all(
        runner,
        model.tokenizer,
        requests[count:],
        on_record=lambda record: step_seconds.append(record.seconds),
    )
    return (time.perf_counter() - started) / sum(step_seconds)


def measure_joules(model: LoadedModel) -> tuple[float, ...] | None:
    """Return the energy of one token of a single answer by each variant, in joules.

    None if no counter can be read.
    """
    reader = EnergyReader()
    if reader.read()[_JOULES].value is None:
        return None
    decoder, joules = open_zeroed_decoder(model, 2 * _ENERGY_CACHED), []
    for spec in model.variants.values():
        measure, steps = decode_timer(decoder, spec, 1, _ENERGY_CACHED), 0
        before, end = reader.read()[_JOULES].value, time.monotonic() + _ENERGY_SECONDS
        while time.monotonic() < end:
            measure()
            steps += STEPS
        after = reader.read()[_JOULES].value
        if before is None or after is None:
            return None
        joules.append((after - before) / steps)
    return tuple(joules)


def _request(model: LoadedModel, index: int) -> GenerationRequest:
    """Return a request whose prompt shares no prefix with those of other indices."""
    vocab = model.weights.shape.vocab
    return GenerationRequest(
        request_id=str(index),
        prompt=tuple((index + _PROMPT_STRIDE * i) % vocab for i in range(_PROMPT_TOKENS)),
        max_tokens=_ANSWER_TOKENS,
        variant=model.variants[BASE],
        sampling=SamplingParams(temperature=0),
    )
