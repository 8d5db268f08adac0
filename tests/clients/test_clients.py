"""Real client libraries against a live server: each file of `programs` is the tests of one.

They run in an environment of their own, which has what `requirements.txt` names.
"""

import json

import pytest

from server.engine.config import EngineConfig, ModelConfig
from server.engine.loading.checkpoint import description_folder
from server.engine.loading.configured_model import load_configured_model
from server.engine.offline import answer_all
from server.engine.runner_factory import build_runner
from server.engine.sequence import GenerationRequest
from tests.support.client_programs import KV_TOKENS, PROGRAMS, run_program

QUESTIONS = [
    ("The capital of France is", " Paris"),
    ("The capital of France is", " a banana"),
    ("Water freezes at a temperature of zero degrees", " Celsius."),
    ("Once upon a time there was a king who", " lived in a castle with his three daughters."),
    ("def add(a, b):\n    return", " a + b"),
    ("word" + " word" * 300, " word word"),
    ("", "The sea is blue"),
]


@pytest.mark.parametrize(
    "program", sorted(PROGRAMS.glob("*_client.py")), ids=lambda path: path.stem
)
def test_a_client_works(clients_server, tmp_path, program):
    run_program(program, clients_server, tmp_path)


def test_guidellm_runs_to_completion(clients_server, default_model, tmp_path):
    tokenizer = str(description_folder(default_model))
    run_program(
        PROGRAMS / "guidellm_load.py", clients_server, tmp_path, TRIMTAB_TOKENIZER=tokenizer
    )


def test_the_harness_scores_a_pinned_variant_as_the_engine_does_in_process(
    clients_server, default_model, tmp_path
):
    """Beside the server: the same weights in this process, without HTTP."""
    model = load_configured_model(ModelConfig(threads=1))
    variant = next(spec for name, spec in model.variants.items() if name != "base")
    asked = []
    for context, continuation in QUESTIONS:
        # As the harness splits a text into tokens; an empty context is the tokenizer's BOS token.
        tokens = model.tokenizer.encode(context + continuation)
        known = len(model.tokenizer.encode(context))
        if not context:
            tokens, known = [model.tokenizer.bos_token_id, *tokens], 1
        asked.append((context, continuation, tokens, known))
    requests = [
        GenerationRequest(str(at), tuple(tokens), 0, variant, prompt_logprobs=1)
        for at, (*_, tokens, _) in enumerate(asked)
    ]
    runner = build_runner(model, EngineConfig(kv_tokens=KV_TOKENS), None)
    questions = []
    sequences = answer_all(runner, model.tokenizer, requests)
    for (context, continuation, _, known), sequence in zip(asked, sequences, strict=True):
        scores = sequence.prompt_logprobs[known - 1 :]
        likeliest = all(one.rank == 1 for one in scores)
        questions.append((context, continuation, sum(one.logprob for one in scores), likeliest))
    assert {likeliest for *_, likeliest in questions} == {True, False}
    given = {
        "model": f"{model.name}@{variant.name}",
        "tokenizer": str(description_folder(default_model)),
        "questions": questions,
    }
    (tmp_path / "asked.json").write_text(json.dumps(given))
    run_program(
        PROGRAMS / "lm_eval_scores.py", clients_server, tmp_path,
        TRIMTAB_ASKED=str(tmp_path / "asked.json"),
    )  # fmt: skip
