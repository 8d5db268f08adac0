"""What the jobs on an artefact share: the model it was built for, checkpoints and costs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from pruners.architecture import LocatedModel, locate
from pruners.artefact.folder import Artefact, ArtefactError
from pruners.artefact.table import Cost
from pruners.correction import Correction
from pruners.evaluation.cost import compute_cost
from pruners.support.fingerprint import fingerprint
from pruners.variant import Block, VariantSpec, base_spec
from server.engine.loading.load import load_transformers

SELF_GENERATED = "sampled from the base at temperature 1"
"""What artefacts and reports call text that the base itself has written."""

TokenRows = list[torch.Tensor]
"""Rows of token ids, 1-D tensors of any length."""


def checkpoint_folder(target: Path, job: str) -> Path:
    """Return the folder beside `target` where an interrupted job keeps what it has finished."""
    return target.parent / f".{target.name}-{job}"


def load_base(source: Path, artefact: Artefact) -> LocatedModel:
    """Load the base of an artefact in fp32.

    Raises `ArtefactError` if the artefact was built for another model.
    """
    base = load_transformers(source, torch.float32)
    artefact.check_base(fingerprint(base))
    return locate(base)


def find_variants(
    artefact: Artefact, names: Sequence[str], label: str = "the artefact"
) -> list[VariantSpec]:
    """Return the variants of these names.

    Raises `ArtefactError` for a name that there is not; `label` is the artefact in its message.
    """
    known = {spec.name: spec for spec in artefact.variants}
    for name in names:
        if name not in known:
            raise ArtefactError(f"{label} has no variant '{name}'; it has {', '.join(known)}")
    return [known[name] for name in names]


def compute_costs(
    located: LocatedModel,
    variants: Sequence[VariantSpec],
    corrections: Mapping[str, Mapping[Block, Correction]],
) -> dict[str, Cost]:
    """Return the cost of a token by the base and by each variant, by name."""
    return {
        spec.name: compute_cost(spec, corrections.get(spec.name, {}), located)
        for spec in (base_spec(located.shape), *variants)
    }
