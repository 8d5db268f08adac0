"""What is told of how prompts were read, against counts by hand."""

from types import SimpleNamespace

import pytest
import torch

from policies import Action, Objectives, Observation, Reason
from pruners.architecture import Shape
from pruners.reading.reader import PromptReader
from server.api.active_request import ActiveRequest
from server.api.caller import Caller
from server.api.prompt_reading import PromptReading
from server.engine.reading_depth import ReadingDepths

SHAPE = Shape(layers=4, hidden=8, heads=2, kv_groups=1, head_dim=4, ffn=16, vocab=50)
READER = PromptReader("read-60", depth=2, last=3)
LAYER = 8 * (8 + 4 + 4) + 8 * 8 + 3 * 8 * 16
"""Multiply-adds of a layer for a token: `q`, `k`, `v`, `o` and three matrices of the FFN."""
FULL, SHALLOW = 4 * LAYER, 2 * LAYER + 2 * 8 * (4 + 4)
"""Of a token in full, and of a shallow one: two layers, and keys and values of two more."""


def sequence(tokens, reader, reused=0, started_at=1.0):
    depths = ReadingDepths(SHAPE.layers).of(torch.arange(tokens).tolist(), reader)
    request = SimpleNamespace(reader=reader, prompt=tuple(range(tokens)))
    return SimpleNamespace(
        request=request, depths=depths, reused=reused, started_at=started_at, narrowed=False,
        arrived=0.5, first_token_at=None, last_token_at=None, output=[],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("reader", "reused", "tokens", "work"),
    [
        (None, 0, (20, 0, 0), 20 * FULL),
        (None, 16, (4, 0, 16), 4 * FULL),
        (READER, 0, (7, 13, 0), 7 * FULL + 13 * SHALLOW),
        (READER, 10, (3, 7, 10), 3 * FULL + 7 * SHALLOW),
        (READER, 20, (0, 0, 20), 0),
        (READER, 26, (0, 0, 20), 0),  # with six tokens of an answer that was preempted
    ],
)
def test_tokens_and_work_are_those_of_what_was_read(reader, reused, tokens, work):
    found = PromptReading.of([sequence(20, reader, reused)], SHAPE)
    assert found.reader == ("full" if reader is None else "read-60")
    assert (found.full, found.shallow, found.cached) == tokens
    assert found.compute == pytest.approx(work / (20 * FULL))


def test_prompts_are_added_up_and_each_has_its_length():
    found = PromptReading.of([sequence(20, READER), sequence(60, READER, 30)], SHAPE)
    assert found.tokens == {"full": 7 + 3, "shallow": 13 + 27, "cached": 30}
    assert found.compute == pytest.approx((10 * FULL + 40 * SHALLOW) / (80 * FULL))


def test_nothing_is_known_before_all_have_begun():
    waiting = sequence(20, READER, started_at=None)
    assert PromptReading.of([sequence(20, READER), waiting], SHAPE) is None


@pytest.mark.parametrize(("reader", "name"), [(None, "full"), (READER, "read-60")])
def test_a_response_says_how_its_prompts_were_read_each_once(reader, name):
    chosen = SimpleNamespace(
        action=Action("base", None, None if reader is None else name), loss=0.0, ttft=1.0, tpot=0.1
    )
    decision = SimpleNamespace(
        chosen=chosen, action=chosen.action, policy="rule", reason=Reason.BASE_FITS,
        observation=Observation((), Objectives(), wait=0.0, complexity=0.1),
    )  # fmt: skip
    states = [sequence(20, reader, 16 * second) for _ in range(2) for second in range(2)]
    active = ActiveRequest(
        caller=Caller("r"), operation="chat", created=1, decision=decision, features=None, text="",
        prompt_tokens=40,
        choices=2, shape=SHAPE, final=True,
        generations=[SimpleNamespace(sequence=state) for state in states],
    )  # fmt: skip
    disclosed = active.disclosure()
    full = 14 if reader else 40
    assert disclosed["read"] == active.headers()["X-Trimtab-Read"] == name
    assert disclosed["measured_queue_ms"] == 500.0
    assert "measured_ttft_ms" not in disclosed, "no token was written yet"
    assert disclosed["read_tokens"] == {"full": full, "shallow": 40 - full, "cached": 0}
    work = full * FULL + (40 - full) * SHALLOW
    assert disclosed["read_compute"] == pytest.approx(work / (40 * FULL), abs=1e-4)
