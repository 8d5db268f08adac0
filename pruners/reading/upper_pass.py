"""Run the layers above a reader's depth for the full tokens alone, over mapped keys and values.

`read_by` lets the model compute all tokens and overwrites the keys and values of the shallow ones;
this computes nothing for them, which is what training maps wants.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pruners.architecture import LocatedModel, UnsupportedModelError
from pruners.kv.base import rotate
from pruners.reading.maps import KVMaps, features


@dataclass(frozen=True, slots=True)
class FullTokens:
    """The full tokens of rows, padded with other tokens to as many in each row.

    `places` int64 `[rows, most]` are their positions in the text, `real` bool `[rows, most]` is
    false for the padding.
    """

    places: Tensor
    real: Tensor


def find_full(shallow: Tensor, valid: Tensor) -> FullTokens:
    """Return the full tokens of a batch: neither `shallow` nor padding, both `[rows, length]`."""
    full = valid & ~shallow
    counts = full.sum(1)
    order = torch.argsort((~full).int(), dim=1, stable=True)
    most = int(counts.max())
    return FullTokens(order[:, :most], torch.arange(most, device=full.device) < counts[:, None])


def read_upper(
    located: LocatedModel, maps: KVMaps, hidden: Tensor, shallow: Tensor, full: FullTokens
) -> Tensor:
    """Return the final hidden states `[rows, most, hidden]` of the full tokens.

    `hidden` `[rows, length, hidden]` are all tokens at the input of layer `maps.depth`, `shallow`
    bool `[rows, length]` those whose keys and values are mapped from there on. Gradients reach the
    maps. Raises `UnsupportedModelError` for a family that embeds positions.
    """
    if located.rotary is None:
        raise UnsupportedModelError(f"{located.family} has no rotary positions; it is not served")
    places, length = full.places, hidden.shape[1]
    distance = places[:, :, None] - torch.arange(length, device=places.device)
    x = hidden.gather(1, places[:, :, None].expand(-1, -1, hidden.shape[2]))
    keys = _UpperKeys(located, maps, hidden, shallow, full)
    for index in range(maps.depth, located.shape.layers):
        layer = located.layers[index]
        unseen = distance < 0
        if layer.window is not None:
            unseen = unseen | (distance >= layer.window)
        mask = torch.zeros(unseen.shape, dtype=x.dtype, device=x.device)
        keys.tables = located.rope_tables(torch.arange(length), layer.rope_layer_type)
        cos, sin = (table[places] for table in keys.tables)
        x = layer.module(
            x,
            attention_mask=mask.masked_fill(unseen, torch.finfo(x.dtype).min)[:, None],
            position_ids=places,
            past_key_values=keys,
            position_embeddings=(cos, sin),
        )
    return located.final_norm(x)


class _UpperKeys:
    """Stands for a layer's cache: joins the keys and values of full tokens and the mapped ones."""

    def __init__(
        self,
        located: LocatedModel,
        maps: KVMaps,
        hidden: Tensor,
        shallow: Tensor,
        full: FullTokens,
    ) -> None:
        self.tables: tuple[Tensor, Tensor]
        self._located = located
        self._maps = maps
        self._features = features(hidden[shallow])
        self._places = shallow.nonzero()[:, 1]
        # Where each token of the batch stands: the mapped ones first, then those of all rows.
        mapped = len(self._places)
        self._source = torch.zeros(shallow.shape, dtype=torch.int64, device=shallow.device)
        self._source[shallow] = torch.arange(mapped, device=shallow.device)
        rows, most = full.places.shape
        numbers = mapped + torch.arange(rows * most, device=shallow.device).view(rows, most)
        row = torch.arange(rows, device=shallow.device)[:, None].expand(rows, most)
        self._source[row[full.real], full.places[full.real]] = numbers[full.real]

    def update(
        self, keys: Tensor, values: Tensor, layer: int, *args: object
    ) -> tuple[Tensor, Tensor]:
        """Return keys and values `[rows, kv_groups, length, head_dim]` of all tokens of a layer."""
        attention, dim = self._located.layers[layer].attention, self._located.shape.head_dim
        mapped_keys, mapped_values = (
            one.to(keys) for one in self._maps.keys_values(layer, self._features)
        )
        cos, sin = (table[self._places] for table in self.tables)
        heads = attention.key_heads(mapped_keys, dim).transpose(0, 1)
        turned = rotate(heads, cos, sin).transpose(0, 1)
        by_group = mapped_values.unflatten(-1, (-1, dim))
        return self._joined(turned, keys), self._joined(by_group, values)

    def _joined(self, mapped: Tensor, computed: Tensor) -> Tensor:
        together = torch.cat([mapped, computed.transpose(1, 2).flatten(0, 1)])
        return together[self._source].transpose(1, 2)
