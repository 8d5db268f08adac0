"""The `transformers` configuration of a slice."""

from collections.abc import Sequence
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from pruners.architecture import LocatedModel
from pruners.variant import VariantSpec

HfConfig = Any


def update_config(
    config: HfConfig, located: LocatedModel, spec: VariantSpec, kept: Sequence[int]
) -> None:
    """Change the base's configuration in place to that of a slice with the layers `kept`.

    The number of layers is always set. Widths are set if they are equal in all layers and the
    configuration accepts them; otherwise they stay the base's, and `transformers` would build
    another model from this configuration.
    """
    setattr(config, located.names.layers, len(kept))
    for name in located.names.by_layer:
        if getattr(config, name, None):
            setattr(config, name, [getattr(config, name)[index] for index in kept])
    config.architectures = [type(located.model).__name__]
    widths = {(spec.kv_groups[index], spec.ffn[index]) for index in kept}
    if len(widths) == 1:
        for name, value in _width_fields(config, located, *widths.pop()).items():
            setattr(config, name, value)


def _width_fields(config: HfConfig, located: LocatedModel, groups: int, ffn: int) -> dict[str, int]:
    """Return the fields for these widths; none if the configuration cannot express them."""
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
