"""The harness on a tiny model: merged in memory, and served, it finds the same."""

import json

import pytest

pytest.importorskip("lm_eval", reason="the extra 'eval' is not installed")

from server.jobs.lm_eval import HarnessError, HarnessRequest, run_harness, run_harness_on_server
from server.testing import ServerProcess

pytestmark = pytest.mark.slow

TASK = """
task: mine
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{query}}}}"
doc_to_choice: choices
doc_to_target: gold
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""


@pytest.fixture(scope="module")
def server(varied_folders):
    """One of its own: hundreds of questions would keep the others' shadow busy."""
    model, artefact = varied_folders
    given = ("--model", str(model), "--artefact", str(artefact))
    log = model.parent / "examined.log"
    process = ServerProcess(*given, log=log, TRIMTAB_THREADS="1", TRIMTAB_SHADOW_SHARE="0")
    yield process.wait()
    process.stop()


@pytest.fixture
def harness(tmp_path):
    questions = [
        {"query": f"word {n} is", "choices": ["one", "two words", "a third"], "gold": n % 3}
        for n in range(12)
    ]
    file = tmp_path / "questions.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in questions))
    (tmp_path / "mine.yaml").write_text(TASK.format(file=file))
    return HarnessRequest(("mine",), include=tmp_path)


@pytest.mark.parametrize("variant", ["base", "ffn-34"])
def test_a_merged_and_a_served_variant_have_equal_results(server, varied_folders, harness, variant):
    model, artefact = varied_folders
    merged = run_harness(str(model), artefact, variant, harness)["mine"]
    served = run_harness_on_server(server.url, str(model), variant, harness)["mine"]
    assert merged["acc,none"] == served["acc,none"]


def test_an_unknown_task_or_server_is_refused_in_one_line(varied_folders, harness):
    model, artefact = varied_folders
    with pytest.raises(HarnessError, match="no task 'nonsense'"):
        run_harness(str(model), artefact, "base", HarnessRequest(("nonsense",)))
    with pytest.raises(HarnessError, match="no server answers"):
        run_harness_on_server("http://127.0.0.1:9", str(model), "base", harness)
