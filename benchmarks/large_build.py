"""Whether a large model can be built here: `python -m benchmarks.large_build`.

Builds one corrected variant of a random Llama of about a billion parameters, in a process of its
own, and prints the time and the most memory it had resident. Random weights say nothing of quality;
memory does not depend on them.
"""

import multiprocessing
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.support.llama_sizes import add_size_options, read_sizes
from benchmarks.support.results import option_parser, save_result
from pruners.builder.pipeline import build
from pruners.builder.recipe import Recipe
from pruners.builder.steps import BuildRows
from telemetry.machine import describe

RECIPE = Recipe(
    ffn_keep=(0.75,), shares=(), kv_budgets=(), calibration_tokens=1024, selection_tokens=256
)


def measure(sizes: dict[str, int]) -> dict[str, Any]:
    """Builds, and says what it took."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**sizes)).eval().requires_grad_(False)
    rows = [torch.randint(sizes["vocab_size"], (128,)) for _ in range(10)]
    started = time.monotonic()
    artefact = build(model, "random", BuildRows(rows[:8], rows[8:], "random", "other"), RECIPE)
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "seconds": time.monotonic() - started,
        "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "variants": [spec.name for spec in artefact.variants],
        "corrected_blocks": sum(map(len, artefact.corrections.values())),
    }


def main() -> None:
    """Measures and prints."""
    options = option_parser(__doc__)
    add_size_options(options)
    arguments = options.parse_args()
    sizes = read_sizes(arguments)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as pool:
        found = pool.submit(measure, sizes).result()
    result = {"machine": describe(), "sizes": sizes, **found}
    print(
        f"{found['parameters'] / 1e9:.2f} billion parameters: {found['seconds'] / 60:.1f} minutes, "
        f"{found['peak_bytes'] / 2**30:.1f} GiB at the most"
    )
    print(f"written to {save_result('large-build', result, arguments.json)}")


if __name__ == "__main__":
    main()
