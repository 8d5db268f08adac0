"""How long fitting readers takes: `python -m benchmarks.reading_fit`.

Fits the default readers in closed form, and rounds their maps to 4 bits, for a random Llama of
given sizes: the default is the shape of Llama 3.2 1B. Time does not depend on the weights. The pass
over the text grows with its tokens, what follows does not; so the time for another number of tokens
is computed from fewer. No training, and nothing that measures losses, is in the time.
"""

import time
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.support.llama_sizes import add_size_options, read_sizes
from benchmarks.support.results import option_parser, save_result
from pruners.architecture import locate
from pruners.builder.recipe import DEFAULT_READERS, Recipe, make_readers
from pruners.reading.fit import solve_maps, sum_moments
from pruners.support.progress import progress_bars
from telemetry.machine import describe

_ROW_TOKENS = 2048


def measure(sizes: dict[str, int], tokens: int) -> dict[str, Any]:
    """Fit, and return the seconds of the pass over the text, and of solving and rounding."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**sizes)).eval().requires_grad_(False)
    located = locate(model)
    readers = make_readers(DEFAULT_READERS, located.shape)
    count = -(-tokens // _ROW_TOKENS)
    rows = [torch.randint(sizes["vocab_size"], (tokens // count,)) for _ in range(count)]
    depths = sorted({reader.depth for reader in readers.values()})
    started = time.monotonic()
    with progress_bars() as progress:
        moments = sum_moments(located, rows, depths, progress)
    read = time.monotonic()
    stored = 0
    for depth, sums in moments.items():
        maps = solve_maps(located, depth, sums).quantised(sums.within)
        stored += sum(tensor.nbytes for tensor in maps.to_tensors().values())
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "depths": depths,
        "tokens": sum(map(len, rows)),
        "pass_seconds": read - started,
        "solve_seconds": time.monotonic() - read,
        "maps_bytes": stored,
    }


def main() -> None:
    """Measure and print."""
    options = option_parser(__doc__)
    add_size_options(options)
    options.add_argument("--tokens", type=int, default=8192)
    arguments = options.parse_args()
    sizes = read_sizes(arguments) | {"max_position_embeddings": _ROW_TOKENS}
    found = measure(sizes, arguments.tokens)
    wanted = Recipe().reader_tokens
    whole = found["pass_seconds"] * wanted / found["tokens"] + found["solve_seconds"]
    result = {"machine": describe(), "sizes": sizes, **found, "default_seconds": whole}
    print(describe())
    print(
        f"{found['parameters'] / 1e6:.0f} million parameters, depths {found['depths']}: "
        f"{found['pass_seconds']:.0f} s for {found['tokens']} tokens and "
        f"{found['solve_seconds']:.0f} s to solve and round; "
        f"{whole / 60:.1f} minutes with the default {wanted} tokens"
    )
    name = f"reading-fit-{round(found['parameters'] / 1e6)}m"
    print(f"written to {save_result(name, result, arguments.json)}")


if __name__ == "__main__":
    main()
