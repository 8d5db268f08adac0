"""Ridge regression of keys and values on the hidden state at one depth, in one streaming pass."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from rich.progress import Progress
from torch import Tensor, nn

from pruners.architecture import LocatedModel
from pruners.calibration.layer_replay import final_hidden
from pruners.data.rows import make_batches
from pruners.kv.base import SINK_TOKENS
from pruners.reading.maps import KVMaps, features
from pruners.support.progress import track

RIDGE = 1e-3
"""Of the mean diagonal of E[x x^T]."""


@dataclass(slots=True)
class _Moments:
    """Sums over tokens of one depth: x x^T `[hidden + 1] * 2`, and x y^T for each layer above."""

    within: Tensor
    across: dict[int, Tensor] = field(default_factory=dict)


@torch.no_grad()
def fit_maps(
    located: LocatedModel,
    rows: Sequence[Tensor],
    depths: Sequence[int],
    ridge: float = RIDGE,
    progress: Progress | None = None,
) -> dict[int, KVMaps]:
    """Return the maps of each depth, fitted on all tokens of `rows` (1-D) but the first ones.

    For each layer above a depth: W = E[y x^T] (E[x x^T] + ridge * mean diagonal * I)^-1, where x
    are a token's features at the depth and y its keys and values in the layer. Solved in fp64.
    Raise `ValueError` for a depth that the model does not have.
    """
    count = located.shape.layers
    if not all(0 < depth < count for depth in depths):
        raise ValueError(f"depths {list(depths)} of a model with {count} layers")
    size = located.shape.hidden + 1
    moments = {d: _Moments(torch.zeros(size, size, dtype=torch.float64)) for d in depths}
    for batch in track(list(make_batches(rows)), "Fitting maps", progress):
        used = batch.valid.clone()
        used[:, :SINK_TOKENS] = False
        with _recorded(located, min(depths), used) as (inputs, targets):
            final_hidden(located, batch)
        for depth, sums in moments.items():
            x = features(inputs[depth])
            sums.within += (x.T @ x).double().cpu()
            for layer in range(depth, count):
                product = (x.T @ targets[layer]).double().cpu()
                sums.across[layer] = sums.across.get(layer, 0) + product
    return {depth: KVMaps(depth, _solved(sums, ridge)) for depth, sums in moments.items()}


def _solved(sums: _Moments, ridge: float) -> Tensor:
    within = sums.within.clone()
    within.diagonal().add_(ridge * within.diagonal().mean())
    factor = torch.linalg.cholesky(within)
    solved = [torch.cholesky_solve(sums.across[layer], factor).T for layer in sorted(sums.across)]
    return torch.stack(solved).float()


@contextmanager
def _recorded(
    located: LocatedModel, first: int, used: Tensor
) -> Iterator[tuple[dict[int, Tensor], dict[int, Tensor]]]:
    """Record layers' inputs and their keys and values `[tokens, 2 * kv]` at the `used` tokens."""
    inputs: dict[int, Tensor] = {}
    keys: dict[int, Tensor] = {}
    targets: dict[int, Tensor] = {}
    with ExitStack() as hooks:
        for index in range(first, located.shape.layers):
            layer = located.layers[index]

            def enter(module: nn.Module, args: tuple[Tensor, ...], index: int = index) -> None:
                inputs[index] = args[0][used.to(args[0].device)]

            def key(module: nn.Module, args: object, output: Tensor, index: int = index) -> None:
                keys[index] = output[used.to(output.device)].float()

            def value(module: nn.Module, args: object, output: Tensor, index: int = index) -> None:
                targets[index] = output[used.to(output.device)].float()

            handles = (
                layer.module.register_forward_pre_hook(enter),
                layer.attention.k.register_forward_hook(key),
                layer.attention.v.register_forward_hook(value),
            )
            for handle in handles:
                hooks.callback(handle.remove)
        yield inputs, targets
        for index, values in targets.items():
            targets[index] = torch.cat([keys[index], values], dim=-1)
