"""Driving the engine without a server, in the tests' own thread."""

from collections.abc import Sequence as Tokens

import torch
from transformers import PreTrainedModel

from pruners.variant import VariantSpec, base_spec, depth_spec, width_spec
from server.engine.backends.pytorch.convert import convert_weights
from server.engine.backends.pytorch.corrections import PyTorchCorrections
from server.engine.backends.pytorch.decoder import PyTorchDecoder
from server.engine.backends.pytorch.weights import PyTorchWeights
from server.engine.cache.kv_cache import KVCache
from server.engine.detokenizer import Detokenizer
from server.engine.runner import Runner
from server.engine.sampling import SamplingParams
from server.engine.scheduler import Scheduler, SchedulerLimits
from server.engine.sequence import Delta, GenerationRequest, Sequence
from tests.support.parameters import converted
from tests.support.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
GREEDY = SamplingParams(temperature=0.0)


def weights_of(model: PreTrainedModel, seed: int | None = 7, device: str = "cpu") -> PyTorchWeights:
    """Serving weights; with a seed, in a random order, which must not change the base."""
    return convert_weights(converted(model, seed), torch.device(device))


def runner_of(
    weights: PyTorchWeights,
    capacity: int = 4096,
    running: int = 8,
    step_tokens: int = 32,
    corrections: PyTorchCorrections | None = None,
    kind: type[PyTorchDecoder] = PyTorchDecoder,
) -> Runner:
    cache = KVCache(weights.shape, capacity, weights.dtype, weights.device, spare=1)
    limits = SchedulerLimits(running, step_tokens)
    return Runner(kind(weights, cache, corrections), Scheduler(cache, limits))


def variants_of(weights: PyTorchWeights) -> dict[str, VariantSpec]:
    """Base, two widths, a depth, and one that is cut in every way."""
    shape = weights.shape
    groups = max(1, shape.kv_groups // 2) if shape.cuts_groups else shape.kv_groups
    mixed = VariantSpec(
        "mixed",
        (*[groups] * (shape.layers - 1), 0),
        (0, *[32] * (shape.layers - 1)),
    )
    found = [
        base_spec(shape),
        width_spec(shape, 0.75),
        width_spec(shape, 0.5),
        depth_spec(shape, [1]),
        mixed,
    ]
    return {spec.name: spec for spec in found}


class Recorder:
    """Collects one sequence's deltas."""

    def __init__(self) -> None:
        self.deltas: list[Delta] = []

    def __call__(self, delta: Delta) -> None:
        self.deltas.append(delta)

    @property
    def tokens(self) -> list[int]:
        return [d.token for d in self.deltas if d.token is not None]

    @property
    def text(self) -> str:
        return "".join(d.text for d in self.deltas)

    @property
    def last(self) -> Delta:
        return self.deltas[-1]


def submit(
    runner: Runner, prompt: Tokens[int], variant: VariantSpec, max_tokens: int = 16, **more: object
) -> tuple[Sequence, Recorder]:
    recorder = Recorder()
    request = GenerationRequest(
        request_id="test",
        prompt=tuple(prompt),
        max_tokens=max_tokens,
        variant=variant,
        **{"sampling": GREEDY, **more},  # type: ignore[arg-type]
    )
    text = Detokenizer(TOKENIZER, request.stop, prompt, request.min_tokens)
    sequence = Sequence(request, text, recorder)
    runner.scheduler.add(sequence)
    return sequence, recorder


def run(runner: Runner) -> int:
    steps = 0
    while runner.step():
        steps += 1
    return steps


def reference(model: PreTrainedModel, prompt: Tokens[int], max_tokens: int) -> list[int]:
    """What `transformers` writes, greedily and without stopping."""
    ids = torch.tensor([list(prompt)])
    model.generation_config.eos_token_id = None
    # The mask is given, since generate() takes padding ids in a prompt for padding.
    mask = torch.ones_like(ids)
    out = model.generate(ids, attention_mask=mask, max_new_tokens=max_tokens, do_sample=False)
    return out[0, len(prompt) :].tolist()
