"""Models with random weights in bf16, made on the device that they are measured on."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig

from pruners.architecture import LocatedModel, Shape, locate
from pruners.reading.maps import KVMaps
from pruners.reading.reader import PromptReader
from pruners.variant import BASE, base_spec
from server.engine.backends.matrix import Matrix
from server.engine.backends.native.packing import Bits
from server.engine.backends.pytorch.backend import PyTorchBackend
from server.engine.backends.pytorch.convert import ConvertedBase, convert_weights
from server.engine.backends.pytorch.kv_maps import convert_maps
from server.engine.loading.load import LoadedModel
from server.engine.loading.outline import outline_of

READER_DEPTHS = (0.6, 0.3)
"""Shares of the layers that shallow tokens run through."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """A shape and what is measured of it.

    Decode steps have `rows` sequences of `cached` tokens each, prompts `prompts` tokens. The
    maps of readers are trained on at most `pairs` prompts of `taught` tokens, with answers of an
    eighth.
    """

    config: LlamaConfig
    rows: tuple[int, ...] = (1, 8, 64)
    cached: int = 1000
    prompts: tuple[int, ...] = (512, 2048)
    taught: int = 512
    pairs: int = 4096

    @property
    def slots(self) -> int:
        """Return the tokens of the cache that all of it needs."""
        return max(max(self.rows) * (self.cached + 65), *self.prompts)

    @property
    def bytes(self) -> int:
        """Return about how many bytes a model takes with its cache, before it is there."""
        c = self.config
        attention = 2 * c.hidden_size * c.head_dim * (c.num_attention_heads + c.num_key_value_heads)
        layer = attention + 3 * c.hidden_size * c.intermediate_size
        weights = c.num_hidden_layers * layer + 2 * c.vocab_size * c.hidden_size
        token = 2 * c.num_hidden_layers * c.num_key_value_heads * c.head_dim
        return 2 * (weights + self.slots * token)


def _llama(
    layers: int, hidden: int, heads: tuple[int, int], ffn: int, vocab: int = 128_256
) -> LlamaConfig:
    """Return the configuration of a Llama; `heads` are those of queries and of keys."""
    return LlamaConfig(
        num_hidden_layers=layers,
        hidden_size=hidden,
        num_attention_heads=heads[0],
        num_key_value_heads=heads[1],
        head_dim=hidden // heads[0],
        intermediate_size=ffn,
        vocab_size=vocab,
        max_position_embeddings=8192,
        tie_word_embeddings=hidden < 4096,
    )


def sizes_of(quick: bool) -> dict[str, Sizes]:
    """Return the shapes of Llama-3.2-1B and Llama-3.1-8B, or a tiny one for `quick`."""
    if quick:
        tiny = _llama(4, 64, (4, 2), 128, vocab=512)
        return {"tiny": Sizes(tiny, (1, 2), cached=60, prompts=(96, 128), taught=96, pairs=24)}
    return {
        "1B": Sizes(_llama(16, 2048, (32, 8), 8192)),
        "8B": Sizes(_llama(32, 4096, (32, 8), 14336)),
    }


def random_located(config: LlamaConfig, device: torch.device) -> LocatedModel:
    """Return a model of `transformers` whose weights are random, in bf16."""
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return locate(model.eval().requires_grad_(False))


class RandomParameters:
    """Draws the parameters of an outline in bf16 (see `matrix.Parameters`); norms are ones."""

    dtype = torch.bfloat16

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def matrix(self, module: nn.Linear | nn.Embedding, rows: slice | None = None) -> Matrix:
        """Return random values of the size of 0.02."""
        drawn = torch.empty(module.weight.shape, dtype=self.dtype, device=self._device)
        return Matrix(drawn.normal_(std=0.02)[slice(None) if rows is None else rows])

    def bias(self, module: nn.Linear) -> Tensor | None:
        """Return None: these models have none."""
        return None

    def norm(self, module: nn.Module) -> Tensor:
        """Return ones `[size]`."""
        size = next(module.parameters()).shape
        return torch.ones(size, dtype=self.dtype, device=self._device)

    def exact_bits(self, module: nn.Linear | nn.Embedding) -> Bits | None:
        """Return None: no bits hold random values."""
        return None

    def is_quantised(self, module: nn.Linear | nn.Embedding) -> bool:
        """Return False."""
        return False

    def release(self, module: nn.Module) -> None:
        """Do nothing: nothing is kept."""


def random_model(name: str, config: LlamaConfig, device: torch.device) -> LoadedModel:
    """Return such a model in the serving layout, with readers whose maps are random."""
    outline = locate(outline_of(config, name))
    located = replace(outline, rotary=type(outline.rotary)(config))
    shape = located.shape
    parameters = RandomParameters(device)
    base = ConvertedBase(located, parameters, None, None, config.max_position_embeddings)
    weights = convert_weights(base, device)
    readers = [reader_of(shape, share) for share in READER_DEPTHS]
    maps = {reader.depth: random_maps(shape, reader.depth, device) for reader in readers}
    return LoadedModel(
        name=name,
        fingerprint="random",
        backend=PyTorchBackend(weights, {}, convert_maps(weights, maps, None)),
        tokenizer=None,  # nothing here has text
        eos_token_ids=frozenset(),
        variants={BASE: base_spec(shape)},
        artefact=None,
        sampling_defaults={},
        readers={reader.name: reader for reader in readers},
    )


def reader_of(shape: Shape, share: float) -> PromptReader:
    """Return a reader whose shallow tokens run through a share of the layers."""
    depth = max(1, round(share * shape.layers))
    return PromptReader(f"read-{round(100 * share)}", depth)


def random_maps(shape: Shape, depth: int, device: torch.device) -> KVMaps:
    """Return maps of one depth whose keys and values are of the size of 1."""
    size = (shape.layers - depth, 2 * shape.kv_groups * shape.head_dim, shape.hidden + 1)
    return KVMaps(depth, torch.randn(size, device=device) / shape.hidden**0.5)
