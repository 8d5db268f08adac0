"""Prompt features on texts whose counts are plain to see."""

import pytest

from controller import analyze

EASY = "Hi there"
HARD = (
    "First, explain why quicksort is O(n log n) on average. Then write a Python function:\n"
    "```python\ndef sort(xs):\n    return xs\n```\n"
    "1. Compare it with mergesort. 2. Calculate the steps for n = 1000. How would you prove it?"
)


def test_counts():
    features = analyze("Why is 3.5 more than 2? List two reasons. Do not guess!")
    assert features.questions == 1
    assert features.numbers == 2
    assert features.sentences == 3
    assert features.instructions == 2
    assert features.words == 10


@pytest.mark.parametrize("text", ["", " \n", "?", "🙂🙂", "a" * 50_000, "x y " * 20_000])
def test_any_text_gives_a_score_between_nought_and_one(text):
    assert 0.0 <= analyze(text).complexity <= 1.0


def test_more_demanding_prompts_score_higher():
    assert analyze(EASY).complexity < 0.1 < 0.5 < analyze(HARD).complexity
    assert analyze(HARD).code_marks > 0
    assert analyze(HARD).step_cues >= 3


def test_the_end_of_a_long_prompt_is_read():
    filler = "lorem ipsum dolor sit amet " * 400
    assert analyze(filler + "Why? Explain how.").questions == 1
