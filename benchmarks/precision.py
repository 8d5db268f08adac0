"""What rounding activations costs: `python -m benchmarks.precision --text FILE`.

KL in nats per token, and agreement of the most likely tokens, of the native engine in 4 and 8 bits
to PyTorch's fp32 engine on the very same rounded weights. And whether the likeliest token, found
without computing all logits, ever was another than their arg-max.
"""

from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.support.results import option_parser, save_result
from pruners.data.corpus import read_corpus
from pruners.data.rows import hash_rows
from pruners.variant import BASE
from server.engine.backends.base import Segment
from server.engine.backends.matrix import Matrix
from server.engine.backends.native.matrix_packer import MatrixPacker
from server.engine.backends.pytorch.backend import PyTorchBackend
from server.engine.backends.pytorch.weights import PyTorchWeights
from server.engine.loading.load import LoadedModel, load_model, load_tokenizer, open_decoder
from server.engine.loading.source import DEFAULT_MODEL, resolve_model
from server.engine.precision import BITS, Precision
from telemetry.machine import describe

_ROW = 512


def log_probabilities(model: LoadedModel, rows: list[Tensor]) -> Tensor:
    """Of every next token, `[tokens, vocab]`."""
    decoder = open_decoder(model, max(map(len, rows)) + 64)
    found = []
    for row in rows:
        cache = decoder.cache.open()
        assert cache.reserve(len(row))
        hidden = decoder.forward([Segment(row.tolist(), cache, model.variants[BASE])])
        found.append(decoder.logits(hidden).log_softmax(-1))
        cache.close()
    return torch.cat(found)


def compare(precision: Precision, rows: list[Tensor]) -> dict[str, float]:
    """The native engine against fp32 on the weights as they are after rounding."""
    source = resolve_model(DEFAULT_MODEL)
    native = load_model(source, DEFAULT_MODEL, precision)
    dense = load_model(source, DEFAULT_MODEL, "fp32")
    assert isinstance(dense.weights, PyTorchWeights)
    packer = MatrixPacker(BITS[precision], exact=True)  # most of the model has 4 bits
    matrices = [part for layer in dense.weights.layers for part in layer.matrices]
    for part in (*matrices, dense.weights.head):
        part.weight.copy_(packer.codes(Matrix(part.weight))[0].values())
    rounded = replace(dense, backend=PyTorchBackend(dense.weights, {}, {}))
    expected, found = log_probabilities(rounded, rows), log_probabilities(native, rows)
    return {
        "kl": float((expected.exp() * (expected - found)).sum(-1).mean()),
        "agreement": float((expected.argmax(-1) == found.argmax(-1)).float().mean()),
    }


def overlooked(rows: list[Tensor]) -> dict[str, int]:
    """At how many positions `best` found another token than the logits' arg-max."""
    model = load_model(resolve_model(DEFAULT_MODEL), DEFAULT_MODEL, "int4")
    decoder = open_decoder(model, max(map(len, rows)) + 64)
    others = seen = 0
    for row in rows:
        cache = decoder.cache.open()
        assert cache.reserve(len(row))
        hidden = decoder.forward([Segment(row.tolist(), cache, model.variants[BASE])])
        expected = decoder.logits(hidden).argmax(-1).tolist()
        found = [token for some in hidden.split(4) for token in decoder.argmax(some)]
        others += sum(a != b for a, b in zip(expected, found, strict=True))
        seen += len(row)
        cache.close()
    return {"positions": seen, "others": others}


def main() -> None:
    """Measures and prints."""
    options = option_parser(__doc__)
    options.add_argument("--text", required=True)
    options.add_argument("--tokens", type=int, default=4096)
    options.add_argument("--best-tokens", type=int, default=200_000)
    arguments = options.parse_args()

    corpus = read_corpus(arguments.text)
    tokenizer = load_tokenizer(resolve_model(DEFAULT_MODEL))
    rows = corpus.rows(tokenizer, _ROW, arguments.tokens)
    found = {name: compare(name, rows) for name in ("int4", "int8")}
    for name, values in found.items():
        print(f"{name}: KL {values['kl']:.4f}, agreement {values['agreement']:.3f}")
    best = overlooked(corpus.rows(tokenizer, _ROW, arguments.best_tokens))
    print(f"likeliest tokens: {best['others']} of {best['positions']} were others")
    text = {"name": corpus.name, "hash": hash_rows(rows), "tokens": sum(map(len, rows))}
    result = {"machine": describe(), "text": text, **found, "best": best}
    print(f"written to {save_result('precision', result, arguments.json)}")


if __name__ == "__main__":
    main()
