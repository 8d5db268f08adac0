"""The command `llm`: a model of an extra OpenAI server, by chats and by responses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

MODELS = """\
- model_id: chats
  model_name: {model}
  api_base: {url}/v1
  supports_schema: true
- model_id: responses
  model_name: {model}
  api_base: {url}/v1
  responses: true
  supports_schema: true
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory, url, model):
    folder = tmp_path_factory.mktemp("llm")
    (folder / "extra-openai-models.yaml").write_text(MODELS.format(url=url, model=model))
    return folder


def run(home: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "llm", *arguments],
        env={**os.environ, "LLM_USER_PATH": str(home)},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("way", ["chats", "responses"])
@pytest.mark.parametrize("stream", [True, False])
def test_a_prompt_is_answered(home, way, stream):
    options = ["-m", way, "-o", "max_tokens", "12", "-o", "temperature", "0"]
    text = run(home, *options, *([] if stream else ["--no-stream"]), "Name three colours.")
    assert text.strip()
    logged = json.loads(run(home, "logs", "-n", "1", "--json"))[0]
    assert logged["response"].strip() == text.strip()
    if way == "chats":  # of a response that was cut, the command keeps no usage
        assert logged["output_tokens"] > 0


def test_a_conversation_goes_on(home):
    run(home, "-m", "chats", "-o", "max_tokens", "12", "Name three colours.")
    assert run(home, "-c", "-o", "max_tokens", "12", "And one more?").strip()


@pytest.mark.parametrize("way", ["chats", "responses"])
def test_an_answer_keeps_to_a_schema(home, way):
    options = ["-m", way, "-o", "max_tokens", "200", "-o", "temperature", "0"]
    options += ["--schema", "ready bool"]
    assert isinstance(json.loads(run(home, *options, "Are you ready?"))["ready"], bool)
