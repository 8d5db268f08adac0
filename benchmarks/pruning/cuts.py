"""The cuts that `benchmarks.pruning` compares: narrower FFNs, and the bytes of six layers less."""

from collections.abc import Sequence

import torch
from rich.progress import Progress

from benchmarks.pruning.study import BASELINES, LAYERS, ORDER, Study
from pruners.allocation import AllocationProblem, Curve, allocate_greedily
from pruners.allocation.depth import block_spec, order_blocks_to_skip, order_layers_to_skip
from pruners.architecture import Shape
from pruners.correction import from_tensors, to_tensors
from pruners.importance import BLOCK_ORDERS, LAYER_ORDERS
from pruners.recovery import RecoveryOptions, recover
from pruners.recovery.library import CorrectionLibrary
from pruners.variant import Block, VariantSpec, base_spec, depth_spec, width_spec


def widths(
    study: Study, curves: list[Curve], library: CorrectionLibrary, progress: Progress
) -> None:
    """Add cuts that remove a quarter and half of the FFN neurons."""
    located, shape = study.located, study.located.shape
    orders = {name: study.order(name, progress) for name in BASELINES}
    best = orders[ORDER]
    neurons = [curve for curve in curves if curve.part == "mlp"]
    ours: dict[str, VariantSpec] = {}
    for keep in (0.75, 0.5):
        title = f"FFN -{1 - keep:.0%}"
        uniform = width_spec(shape, keep)
        for name, order in orders.items():
            study.add(f"{title} {name}", uniform, order)
        ours[f"{title} uniform"] = uniform
        wanted = keep * shape.ffn * shape.layers
        ours[f"{title} by KL"] = study.by_kl(best, neurons, library, wanted, progress)
    specs = list(ours.values())

    def compute() -> dict[str, torch.Tensor]:
        options = RecoveryOptions(materialised=True)
        found = recover(located, specs, best, study.rows, options, progress)
        return {
            f"{title}/{name}": tensor
            for title, refit in zip(ours, found, strict=True)
            for name, tensor in to_tensors(refit.corrections).items()
        }

    tensors = study.checkpoint.get_or_compute_tensors("refits", compute)
    for title, spec in ours.items():
        refit = {n.removeprefix(f"{title}/"): t for n, t in tensors.items() if n.startswith(title)}
        if "uniform" not in title:
            study.add(title, spec, best)
        study.add(f"{title}, shared", spec, best, library.of(spec))
        study.add(f"{title}, materialised", spec, best, from_tensors(refit))


def depths(
    study: Study, curves: list[Curve], library: CorrectionLibrary, progress: Progress
) -> None:
    """Add cuts that remove the bytes of six layers: as layers, sub-blocks, or any cuts."""
    located, shape, rows = study.located, study.located.shape, study.selection
    order = study.order(ORDER, progress)
    biases = library.biases_of_skipped()
    removed = base_spec(shape).body_parameters(shape) * LAYERS // shape.layers
    note = study.checkpoint.get_or_compute
    greedily = note(
        "layers", lambda: order_layers_to_skip(located, rows, LAYERS, None, progress).layers
    )
    layers = {name: find(located, study.scored, progress) for name, find in LAYER_ORDERS.items()}
    for name, found in {"greedy KL": greedily, **layers}.items():
        study.add(f"{LAYERS} layers {name}", depth_spec(shape, list(found[:LAYERS])), order)
    chosen = note(
        "blocks", lambda: order_blocks_to_skip(located, rows, removed, biases, progress).blocks
    )
    # The last block takes more than six layers hold: the bytes lie between these two.
    for name, blocks in (("", chosen), (", one fewer", chosen[:-1])):
        spec = block_spec(shape, [Block(*block) for block in blocks])
        study.add(f"sub-blocks greedy KL, constants{name}", spec, order, library.of(spec))
    for name, find in BLOCK_ORDERS.items():
        blocks = find(located, study.scored, progress)
        study.add(f"sub-blocks {name}", _blocks_of(shape, blocks, removed), order)
    base = base_spec(shape)
    left = base.body_parameters(shape) - removed
    problem = AllocationProblem(base, curves, lambda s: s.body_parameters(shape), left)
    mixed = allocate_greedily(problem)
    study.add("every kind by KL, shared", mixed, order, library.of(mixed))


def _blocks_of(shape: Shape, blocks: Sequence[Block], removed: int) -> VariantSpec:
    """Return the variant without the first blocks that together hold this many parameters."""
    base = base_spec(shape)
    for number in range(1, len(blocks) + 1):
        spec = block_spec(shape, blocks[:number])
        if base.body_parameters(shape) - spec.body_parameters(shape) >= removed:
            return spec
    return block_spec(shape, blocks)
