"""A prefix serves only what asks for no deeper reading; what the base writes never changes."""

import pytest

from server.engine.reading_depth import ReadingDepths
from tests.support.driving import reference, run, runner_of, submit, variants_of, weights_of
from tests.support.readers import (
    DEEPER,
    NUMBERS,
    SHALLOW,
    WITH_NUMBERS,
    SubstitutingDecoder,
    as_read,
)
from tests.support.tiny import tiny_model

PROMPT = [(5 * i + 1) % 384 for i in range(70)]
READERS = (SHALLOW, DEEPER, WITH_NUMBERS)


@pytest.fixture
def runner():
    made = runner_of(weights_of(tiny_model()), capacity=2048, kind=SubstitutingDecoder)
    made.scheduler.reading = ReadingDepths(3, READERS, NUMBERS)
    return made


def answer(runner, prompt, reader=None, name="base", count=8):
    variant = variants_of(runner.decoder.weights)[name]
    sequence, recorder = submit(runner, prompt, variant, count, reader=reader)
    run(runner)
    return sequence.reused, recorder.tokens


@pytest.mark.parametrize(
    ("first", "then", "reused"),
    [
        (SHALLOW, SHALLOW, 69),
        (DEEPER, SHALLOW, 69),
        (None, SHALLOW, 69),
        (None, DEEPER, 69),
        (WITH_NUMBERS, SHALLOW, 69),
        (SHALLOW, DEEPER, 0),  # only its first four tokens
        (SHALLOW, None, 0),
        (DEEPER, None, 0),
    ],
)
def test_the_same_prompt_starts_from_what_was_read_as_deep_or_deeper(runner, first, then, reused):
    answer(runner, PROMPT, first)
    assert answer(runner, PROMPT, then)[0] == reused


def test_a_prefix_ends_before_the_first_token_that_was_read_less(runner):
    """Tokens read in full behind a shallow one are not what the base would have computed."""
    full = PROMPT[:30]
    written = answer(runner, full)[1]
    longer = [*full, *written, *PROMPT[30:]]
    assert answer(runner, longer, SHALLOW)[0] == 37, "a conversation goes on"
    forgotten = runner.scheduler.cache.prefixes
    while len(forgotten._entries) > 1:
        forgotten.drop_oldest()
    expected = reference(tiny_model(), longer, 8)
    assert answer(runner, longer) == (37, expected), "up to the first shallow one, not beyond"


def test_a_number_and_what_stands_before_it_have_to_be_read_in_full(runner):
    prompt = [*(1 for _ in range(30)), 25, *PROMPT[:30]]  # 25 is a number
    answer(runner, prompt, SHALLOW)
    assert answer(runner, prompt, WITH_NUMBERS)[0] == 27
    assert answer(runner, prompt, WITH_NUMBERS)[0] == len(prompt) - 1


@pytest.mark.slow
def test_what_the_base_writes_is_the_same_on_a_server_without_readers(runner):
    plain = runner_of(weights_of(tiny_model()), capacity=2048)
    prompts = [PROMPT[:30], PROMPT, [*PROMPT, *PROMPT[:20]], PROMPT[:50]]
    for prompt in prompts:
        for reader in READERS:
            answer(runner, prompt, reader)
    for _ in range(2):
        for prompt in prompts:
            for reader in READERS:
                answer(runner, prompt, reader)
            assert answer(runner, prompt) == answer(plain, prompt)
    caches = [one.scheduler.cache.prefixes for one in (runner, plain)]
    held = [
        {e.tokens: e.cache.read() for e in cache._entries if min(e.depths) == 255}
        for cache in caches
    ]
    assert held[0]
    for tokens in held[0].keys() & held[1].keys():
        for found, expected in zip(held[0][tokens], held[1][tokens], strict=True):
            assert found.equal(expected), "bit for bit"


def test_a_shallow_prefix_takes_the_place_of_no_deeper_one(runner):
    base = variants_of(runner.decoder.weights)["base"]
    submit(runner, PROMPT, base, 1)
    submit(runner, [*PROMPT, 9, 8, 7], base, 20, reader=SHALLOW)  # at once: it copies nothing
    run(runner)
    assert len(runner.scheduler.cache.prefixes._entries) == 2
    assert answer(runner, PROMPT)[0] == 69


def test_a_deeper_prefix_takes_the_place_of_a_shallow_one(runner):
    answer(runner, PROMPT, SHALLOW, count=1)
    answer(runner, [*PROMPT, 9, 8, 7])
    (only,) = runner.scheduler.cache.prefixes._entries
    assert min(only.depths) == 255


def test_a_variant_and_its_readers_share_nothing_with_another(runner):
    answer(runner, PROMPT, SHALLOW, "ffn-50")
    assert answer(runner, PROMPT, SHALLOW)[0] == 0
    assert answer(runner, PROMPT, SHALLOW, "ffn-50")[0] == 69


def test_what_can_be_reused_is_known_beforehand_for_each_reader(runner):
    prefixes, reading = runner.scheduler.cache.prefixes, runner.scheduler.reading
    assert prefixes.reusable(PROMPT, reading) == {}
    answer(runner, PROMPT[:20])
    answer(runner, PROMPT[:50], DEEPER)
    answer(runner, PROMPT[:60], SHALLOW, "ffn-50")
    known = prefixes.reusable(PROMPT, reading)
    assert known["base", None] == 20
    assert known["base", "read-33"] == known["base", "read-66"] == 50
    assert ("ffn-50", None) not in known
    assert known["ffn-50", "read-33"] == 60
    for reader in (None, *READERS):  # each is asked before it leaves a prefix of its own
        for name in ("base", "ffn-50"):
            key = name, None if reader is None else reader.name
            expected = prefixes.reusable(PROMPT, reading).get(key, 0)
            assert answer(runner, PROMPT, reader, name)[0] == expected


def test_answers_from_a_prefix_read_so_are_those_without(runner):
    expected = reference(tiny_model(), as_read(PROMPT, SHALLOW), 8)
    assert answer(runner, PROMPT, SHALLOW) == (0, expected)
    assert answer(runner, PROMPT, SHALLOW) == (69, expected)
