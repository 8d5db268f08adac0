"""The benchmark in small, to see that it works: a tiny random model, random requests."""

from dataclasses import replace

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.reading.examples import Example
from benchmarks.reading.study import ReadingStudy
from benchmarks.reading.tasks import Item
from benchmarks.reading.ways import compared_ways
from pruners.architecture import locate
from pruners.reading.fit import fit_maps
from pruners.reading.reader import PromptReader
from pruners.realization.order import Order
from pruners.realization.variant_set import VariantSet
from pruners.variant import width_spec

_VOCAB = 97
_TINY = {
    "vocab_size": _VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
}


def tiny_study() -> ReadingStudy:
    """Return a study of a tiny random model on random tokens, which takes a few seconds."""
    torch.manual_seed(0)
    located = locate(LlamaForCausalLM(LlamaConfig(**_TINY)).eval())
    shape = located.shape
    reader = PromptReader("read-75", 2, last=4)
    maps = fit_maps(located, [_tokens(40) for _ in range(8)], [reader.depth])
    order = Order(
        torch.arange(shape.ffn).repeat(shape.layers, 1),
        torch.arange(shape.kv_groups).repeat(shape.layers, 1),
    )
    variants = VariantSet(order, [replace(width_spec(shape, 0.5), name="mix-50")], {})
    examples = [_random_example(context) for context in (20, 40, 60, 80)]
    first = _random_example(30)
    choices = (first, replace(first, answer=tuple(_tokens(3).tolist())))
    tasks = {"copying": [Item((first,))], "choice": [Item(choices, gold=0)]}
    ways = compared_ways(located, variants, [reader], maps, None)
    return ReadingStudy(located, ways, examples, tasks)


def _tokens(count: int) -> torch.Tensor:
    return torch.randint(3, _VOCAB, (count,))


def _random_example(context: int) -> Example:
    parts = (_tokens(count).tolist() for count in (6, context, 6, 8))
    return Example(*(tuple(part) for part in parts))
