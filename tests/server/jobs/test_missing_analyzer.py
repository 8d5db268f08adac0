"""Jobs that need an analyzer notice before their work that its package is missing."""

import pytest

from controller.analyzer import BACKENDS, AnalyzerError
from pruners.data.corpus import Corpus
from server.jobs.profile import ProfileConfig, make_profile
from server.jobs.sensitivity import learn_sensitivity


@pytest.fixture
def corpus(monkeypatch):
    """Return a corpus; spaCy is missing."""

    def missing():
        raise ImportError("No module named 'spacy'")

    monkeypatch.setitem(BACKENDS, "spacy", missing)
    return Corpus("prompts", ("Hello.",))


def test_sensitivity_is_refused_before_the_artefact_is_read(corpus, tmp_path):
    with pytest.raises(AnalyzerError, match="analyzer 'spacy'"):
        learn_sensitivity("no-model", tmp_path, corpus, 40, 8, "spacy")


def test_a_profile_is_refused_before_the_model_is_loaded(corpus, tmp_path):
    with pytest.raises(AnalyzerError, match="analyzer 'spacy'"):
        make_profile(ProfileConfig(analyzer="spacy"), tmp_path / "profile", corpus, 40, 8)
