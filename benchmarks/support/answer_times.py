"""How long a live server takes for one answer, as its client sees it."""

import time

import httpx

from server.testing import ServerProcess


def answer_times(
    server: ServerProcess, prompt: str, tokens: int, variant: str
) -> tuple[float, float]:
    """Return the seconds to the first token and to the end of an answer of `tokens` tokens.

    The answer is pinned to a variant. Raises `httpx.HTTPError`.
    """
    body = {
        "prompt": prompt,
        "max_tokens": tokens,
        "ignore_eos": True,
        "stream": True,
        "trimtab": {"variant": variant},
    }
    started, first = time.perf_counter(), 0.0
    with httpx.stream("POST", f"{server.url}/generate", json=body, timeout=120) as response:
        response.raise_for_status()
        for line in response.iter_lines():
            if line.startswith("data: ") and not first:
                first = time.perf_counter() - started
    return first, time.perf_counter() - started
