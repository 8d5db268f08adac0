"""What the configuration of a `transformers` model can say about a slice of it."""

from collections.abc import Sequence
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from pruners.architecture import LocatedModel
from pruners.variant import VariantSpec

HfConfig = Any


def update_config(
    config: HfConfig, located: LocatedModel, spec: VariantSpec, kept: Sequence[int]
) -> None:
    """Makes `config`, the base's until now, that of a slice with the layers `kept`, in place.

    The number of layers is always said. Widths are said if they are the same in all layers and the
    configuration takes them; otherwise they stay the base's and the model is not the one that
    `transformers` would build from its configuration.
    """
    setattr(config, located.names.layers, len(kept))
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[index] for index in kept]
    config.architectures = [type(located.model).__name__]
    widths = {(spec.kv_groups[index], spec.ffn[index]) for index in kept}
    if len(widths) == 1:
        for name, value in _accepted(config, located, *widths.pop()).items():
            setattr(config, name, value)


def _accepted(config: HfConfig, located: LocatedModel, groups: int, ffn: int) -> dict[str, int]:
    """The fields for these widths; none if the family cannot say them or refuses the numbers."""
    shape, names = located.shape, located.names
    if groups == 0 or ffn == 0:
        return {}
    fields = {names.ffn: ffn}
    if groups < shape.kv_groups:
        if names.heads is None or names.kv_groups is None:
            return {}
        fields |= {
            names.kv_groups: groups,
            names.heads: groups * shape.queries_per_group,
            "head_dim": shape.head_dim,
        }
    try:
        type(config).from_dict({**config.to_dict(), **fields})
    except (StrictDataclassError, ValueError):  # such as heads that do not divide the hidden size
        return {}
    return fields
