"""Report what a model consists of, what can be pruned, and whether it can be served."""

from collections import Counter
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from torch import nn

from pruners.architecture import SERVED_FAMILIES, LocatedModel, Shape, locate, stored_module

KINDS = ("embedding", "attention", "ffn", "norms", "head", "other")


@dataclass(frozen=True, slots=True)
class PruningTarget:
    """A kind of unit that can be pruned: `units` of it in the model, `parameters` in each."""

    name: str
    units: int
    parameters: int


@dataclass(frozen=True, slots=True)
class ModelReport:
    """A model's sizes, its number of `parameters` by kind, and what can be pruned.

    A head that shares its weight with the embedding counts as embedding.
    """

    family: str
    model_class: str
    shape: Shape
    gated: bool
    causal: bool
    tied: bool
    parameters: dict[str, int]
    targets: tuple[PruningTarget, ...]
    served: bool

    @property
    def total(self) -> int:
        """Return the number of all parameters."""
        return sum(self.parameters.values())

    def share(self, kind: str) -> float:
        """Return the share of this kind in all parameters, from 0 to 1."""
        return self.parameters[kind] / self.total


def diagnose(model: nn.Module) -> ModelReport:
    """Count the parameters of a `transformers` language model.

    No weight is read, so the model may be on the meta device. Raises `UnsupportedModelError` if its
    parts cannot be located.
    """
    located = locate(model)
    return ModelReport(
        family=located.family,
        model_class=type(model).__name__,
        shape=located.shape,
        gated=located.layers[0].mlp.gate is not None,
        causal=located.causal,
        tied=stored_module(located.head).weight is located.embed.weight,
        parameters=_count(located),
        targets=_targets(located),
        served=located.family in SERVED_FAMILIES,
    )


def render(report: ModelReport) -> RenderableType:
    """Return the report as Rich tables."""
    shape = report.shape
    sizes = Table(title=f"{report.model_class} ({report.family})", show_header=False)
    for label, text in (
        ("layers", f"{shape.layers} of hidden size {shape.hidden}"),
        ("attention", _attention(shape)),
        ("FFN", f"{shape.ffn} neurons, {'gated' if report.gated else 'not gated'}"),
        ("vocabulary", f"{shape.vocab}{', head tied to the embedding' if report.tied else ''}"),
        ("reads", "left to right" if report.causal else "both ways (an encoder)"),
        ("served", "yes" if report.served else "no, pruning and evaluation only"),
    ):
        sizes.add_row(label, text)
    kinds = Table("kind", title="Parameters")
    targets = Table("target", title="What can be cut")
    for table, headers in ((kinds, ("number", "share")), (targets, ("units", "parameters each"))):
        for header in headers:
            table.add_column(header, justify="right")
    for kind, number in report.parameters.items():
        kinds.add_row(kind, f"{number:,}", f"{report.share(kind):.1%}")
    kinds.add_row("total", f"{report.total:,}", "100.0%", style="bold")
    for target in report.targets:
        targets.add_row(target.name, f"{target.units:,}", f"{target.parameters:,}")
    return Group(sizes, kinds, targets)


def _attention(shape: Shape) -> str:
    heads = f"{shape.heads} heads of {shape.head_dim}"
    together = "" if shape.cuts_groups else "; a norm joins them, so they are cut together"
    if shape.queries_per_group == 1:
        return f"{heads}, each with its own keys and values{together}"
    return f"{heads} in {shape.kv_groups} KV groups of {shape.queries_per_group}{together}"


def _count(located: LocatedModel) -> dict[str, int]:
    known = _kinds_by_id(located)
    counted: set[int] = set()
    counts: Counter[str] = Counter()
    for module in located.model.modules():
        for parameter in module.parameters(recurse=False):
            if id(parameter) not in counted:
                counted.add(id(parameter))
                counts[known.get(id(parameter)) or _kind_of(module)] += parameter.numel()
    return {kind: counts[kind] for kind in KINDS if counts[kind]}


def _kinds_by_id(located: LocatedModel) -> dict[int, str]:
    """Return the kind of each parameter that the adapter locates, by the parameter's id."""
    places: list[tuple[str, nn.Module]] = []
    for layer in located.layers:
        attention = layer.attention
        projections = (*attention.inputs, attention.o)
        places += [("attention", stored_module(projection)) for projection in projections]
        places += [("ffn", stored_module(part)) for part in (*layer.mlp.inputs, layer.mlp.down)]
    places += [("head", stored_module(located.head)), ("embedding", located.embed)]
    # The embedding comes last, so that a tied head counts as embedding.
    return {id(p): kind for kind, module in places for p in module.parameters()}


def _kind_of(module: nn.Module) -> str:
    """Return the kind by the module's class, for position embeddings and norms."""
    if isinstance(module, nn.Embedding):
        return "embedding"
    return "norms" if "norm" in type(module).__name__.lower() else "other"


def _targets(located: LocatedModel) -> tuple[PruningTarget, ...]:
    shape, layer = located.shape, located.layers[0]
    attention = layer.attention
    neurons = sum(_size(part) for part in layer.mlp.inputs) + layer.mlp.down.weight.numel()
    norms = [norm for norm in (attention.q_norm, attention.k_norm) if norm is not None]
    head_norms = sum(p.numel() for norm in norms for p in norm.parameters())
    groups = sum(_size(part) for part in attention.inputs) + attention.o.weight.numel()
    cut = PruningTarget("kv_group", shape.layers * shape.kv_groups, groups // shape.kv_groups)
    return (
        PruningTarget("ffn_neuron", shape.layers * shape.ffn, neurons // shape.ffn),
        *([cut] if shape.cuts_groups else []),
        PruningTarget("attention_block", shape.layers, groups + _bias(attention.o) + head_norms),
        PruningTarget("mlp_block", shape.layers, neurons + _bias(layer.mlp.down)),
        PruningTarget("layer", shape.layers, sum(p.numel() for p in layer.module.parameters())),
    )


def _size(projection: nn.Linear) -> int:
    return projection.weight.numel() + _bias(projection)


def _bias(projection: nn.Linear) -> int:
    return 0 if projection.bias is None else projection.bias.numel()
