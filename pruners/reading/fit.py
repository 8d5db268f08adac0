"""Ridge regression of keys and values on the hidden state at one depth, in one streaming pass."""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import Progress
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pruners.architecture import LocatedModel
from pruners.calibration.layer_replay import final_hidden
from pruners.data.rows import TokenBatch, hash_rows, make_batches
from pruners.kv.base import SINK_TOKENS
from pruners.reading.maps import KVMaps, features
from pruners.support.files import replace_file
from pruners.support.progress import track

RIDGE = 1e-3
"""Of the mean diagonal of E[x x^T]."""


_BATCH_TOKENS = 2048
_SAVE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Moments:
    """Sums over tokens for one depth, fp64.

    `within` is x x^T `[hidden + 1, hidden + 1]`, `across` x y^T `[hidden + 1, layers above * 2 *
    kv]`, where y are the keys and values of one layer after the other.
    """

    within: Tensor
    across: Tensor


def fit_maps(
    located: LocatedModel, rows: Sequence[Tensor], depths: Sequence[int], ridge: float = RIDGE
) -> dict[int, KVMaps]:
    """Return the maps of each depth, fitted on all tokens of `rows` (1-D) but the first ones.

    Raises `ValueError` as `sum_moments` does.
    """
    moments = sum_moments(located, rows, depths)
    return {depth: solve_maps(located, depth, sums, ridge) for depth, sums in moments.items()}


@torch.no_grad()
def sum_moments(
    located: LocatedModel,
    rows: Sequence[Tensor],
    depths: Sequence[int],
    progress: Progress | None = None,
    state: Path | None = None,
) -> dict[int, Moments]:
    """Return what maps of each depth are solved from, of all tokens of `rows` but the first ones.

    Sums are fp32 within a batch and fp64 over batches; what they take does not grow with the text.
    With a `state` file, an interrupted call of the same rows and depths goes on from there to the
    same sums. Raises `ValueError` for a depth that the model does not have, or rows without a
    token to fit on.
    """
    count = located.shape.layers
    if not all(0 < depth < count for depth in depths):
        raise ValueError(f"depths {list(depths)} of a model with {count} layers")
    if not any(len(row) > SINK_TOKENS for row in rows):
        raise ValueError(f"no row has more than {SINK_TOKENS} tokens")
    identity = f"{hash_rows(rows)} {sorted(set(depths))} {_BATCH_TOKENS}"
    moments, done = _read_state(state, identity)
    moments = moments or {depth: _no_moments(located, depth) for depth in sorted(set(depths))}
    waiting = list(make_batches(rows, _BATCH_TOKENS))[done:]
    saved = time.monotonic()
    for number, batch in enumerate(track(waiting, "Fitting maps", progress), done + 1):
        _add_batch(located, batch, moments)
        if state is not None and time.monotonic() - saved >= _SAVE_SECONDS:
            _write_state(state, identity, moments, number)
            saved = time.monotonic()
    return moments


def solve_maps(located: LocatedModel, depth: int, sums: Moments, ridge: float = RIDGE) -> KVMaps:
    """Return the maps of one depth by ridge regression, in closed form.

    For each layer above: W = E[y x^T] (E[x x^T] + ridge * mean diagonal * I)^-1, where x are a
    token's features at the depth and y its keys and values in the layer.
    """
    within = sums.within.clone()
    within.diagonal().add_(ridge * within.diagonal().mean())
    solved = torch.cholesky_solve(sums.across, torch.linalg.cholesky(within))
    rows = 2 * located.shape.kv_groups * located.shape.head_dim
    return KVMaps(depth, solved.T.unflatten(0, (-1, rows)).float().contiguous())


def _no_moments(located: LocatedModel, depth: int) -> Moments:
    shape = located.shape
    size = shape.hidden + 1
    targets = (shape.layers - depth) * 2 * shape.kv_groups * shape.head_dim
    return Moments(
        torch.zeros(size, size, dtype=torch.float64),
        torch.zeros(size, targets, dtype=torch.float64),
    )


def _add_batch(located: LocatedModel, batch: TokenBatch, moments: dict[int, Moments]) -> None:
    """Run one batch and add its products to the sums."""
    used = batch.valid.clone()
    used[:, :SINK_TOKENS] = False
    first = min(moments)
    with _recorded(located, first, used) as (inputs, targets):
        final_hidden(located, batch)
    together = torch.cat([targets[layer] for layer in range(first, located.shape.layers)], dim=1)
    width = together.shape[1] // (located.shape.layers - first)
    for depth, sums in moments.items():
        x = features(inputs[depth])
        sums.within.add_((x.T @ x).cpu())
        sums.across.add_((x.T @ together[:, (depth - first) * width :]).cpu())


def _write_state(path: Path, identity: str, moments: dict[int, Moments], batches: int) -> None:
    tensors: dict[str, Tensor] = {}
    for depth, sums in moments.items():
        tensors |= {f"{depth}.within": sums.within, f"{depth}.across": sums.across}
    note = {"identity": identity, "batches": str(batches)}
    replace_file(path, lambda staged: save_file(tensors, staged, note))


def _read_state(path: Path | None, identity: str) -> tuple[dict[int, Moments], int]:
    """Return the sums of an interrupted call and the number of its batches, or none and 0."""
    if path is None or not path.exists():
        return {}, 0
    try:
        with safe_open(path, framework="pt") as file:
            note = file.metadata()
            if note["identity"] != identity:
                return {}, 0
            depths = sorted({int(name.partition(".")[0]) for name in file.keys()})  # noqa: SIM118
            moments = {
                depth: Moments(
                    file.get_tensor(f"{depth}.within"), file.get_tensor(f"{depth}.across")
                )
                for depth in depths
            }
            return moments, int(note["batches"])
    except (SafetensorError, OSError):
        return {}, 0


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
