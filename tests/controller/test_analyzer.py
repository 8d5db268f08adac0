"""Prompt features on texts whose counts are plain to see."""

import sys
import time

import pytest

from controller import Analyzer
from controller.analyzer import AnalyzerError, analyzer
from controller.analyzer.with_nltk import NltkBackend
from controller.analyzer.with_spacy import SpacyBackend

analyze = Analyzer()

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


@pytest.fixture(scope="module")
def spacy_backend():
    return SpacyBackend(budget=10.0)


@pytest.mark.parametrize(
    "text", ["\n", ". \n", "\t\n", "SELECT ", "return x ", "1. ", "</a", "and "]
)
def test_no_text_takes_long(text):
    long = text * (100_000 // len(text))
    began = time.thread_time()
    Analyzer()(long)
    assert time.thread_time() - began < 0.05, "it is read in the event loop"


def test_items_of_a_list_are_steps_behind_empty_lines_too():
    assert Analyzer()("Do this:\n\n\n  - one\n\n2. two\n * three").step_cues == 3


def test_languages_are_told_apart():
    for language, text in {
        "en": "What is the best way to learn a new language at home?",
        "de": "Was ist der beste Weg, eine neue Sprache zu lernen, und wie lange dauert es?",
        "fr": "Quelle est la meilleure façon d'apprendre une langue pour les enfants ?",
        "es": "Cuál es la mejor forma de aprender un idioma en casa con los niños",
        "": "foo(bar); baz = qux + quux",
    }.items():
        assert analyze(text).language == language, text


def test_nltk_counts_words_and_sentences_without_downloads():
    found = NltkBackend().analyze("Dr. Smith doesn't sleep. Why? He reads Homer.")
    assert found.sentences == 3  # the patterns see more: they take "Dr." for an end
    assert found.words >= 8
    assert found.backend == "nltk"
    assert NltkBackend().analyze("").sentences == 0


@pytest.mark.slow
def test_spacy_parses(spacy_backend):
    found = spacy_backend.analyze("The old keeper wrote a long letter and left the lighthouse.")
    assert found.verbs == 2
    assert found.noun_chunks == 3
    assert 1.0 < found.dependency_span < 4.0
    assert found.sentences == 1
    assert spacy_backend.analyze("").verbs == 0


@pytest.mark.slow
def test_a_backend_without_time_gives_way_and_that_is_counted(monkeypatch):
    monkeypatch.setitem(analyzer.BACKENDS, "spacy", lambda: SpacyBackend(budget=0.0))
    gave_way = []
    read = Analyzer("spacy", gave_way.append)
    assert read("Why is that so?").backend == "nltk"
    assert read("Why is that so?").backend == "nltk"
    assert gave_way == ["spacy"], "the second time it was known"


@pytest.mark.slow
def test_spacy_tries_again_when_its_last_try_is_long_ago():
    backend = SpacyBackend(budget=0.05)
    backend._per_word = 1.0  # a second, as on a machine that was very busy
    assert backend.analyze("Why is that so?") is None
    backend._measured_at -= 120.0
    found = backend.analyze("Why is that so?")
    assert found is not None
    assert found.backend == "spacy"
    assert backend._per_word < 1.0


def test_what_is_not_installed_is_a_clear_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(AnalyzerError, match="analyzer 'spacy'"):
        Analyzer("spacy")
    assert Analyzer("patterns")("hello there").words == 2


@pytest.mark.parametrize("backend", ["patterns", "nltk"])
def test_any_text_is_read_by_every_backend(backend):
    read = Analyzer(backend)
    for text in ("", " \n", "?", "🙂🙂", "a" * 50_000, "x y " * 20_000, "\x00", "1. 2. 3."):
        assert read(text).words >= 0
