"""EleutherAI's harness scores texts over HTTP; what is expected comes from the test outside."""

import json
import os
from pathlib import Path

import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalCompletionsAPI


def test_the_harness_finds_the_scores_of_the_engine(url):
    asked = json.loads(Path(os.environ["TRIMTAB_ASKED"]).read_text())
    harness = LocalCompletionsAPI(
        model=asked["model"],
        base_url=f"{url}/v1/completions",
        tokenizer=asked["tokenizer"],
        tokenized_requests=True,
        num_concurrent=2,
        max_length=1024,
    )
    requests = [
        Instance(request_type="loglikelihood", doc={}, arguments=(context, continuation), idx=at)
        for at, (context, continuation, *_) in enumerate(asked["questions"])
    ]
    found = harness.loglikelihood(requests)
    *_, scores, likeliest = zip(*asked["questions"], strict=True)
    logprobs, greedy = zip(*found, strict=True)
    assert logprobs == pytest.approx(scores, abs=1e-3)
    assert greedy == likeliest
