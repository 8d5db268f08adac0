"""The names by which clients may call the served model."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from pruners.variant import BASE
from server.api.errors import ApiError
from server.engine.loading.source import DEFAULT_HUB_NAME, DEFAULT_MODEL

_SNAPSHOT = re.compile(r"models--([^/\\]+?)--([^/\\]+)[/\\]snapshots[/\\]")
"""Where the hub's cache keeps a model; its folder says the owner and the name."""


@dataclass(frozen=True, slots=True)
class ModelNames:
    """The name that answers have (`served`), those that are listed beside it, and all `others`.

    Behind each of them may stand `@VARIANT`.
    """

    served: str
    listed: tuple[str, ...] = ()
    others: frozenset[str] = frozenset()

    @classmethod
    def of(cls, given: Sequence[str], source: str, name: str) -> "ModelNames":
        """Return the names of a model that was loaded from `source` and is called `name`.

        The first of those that were `given`, if any, is the one that is served.
        """
        served, *listed = given or (name,)
        natural = {name, *_hub_names(source, name)}
        return cls(served, tuple(listed), frozenset(natural - {served, *listed}))

    def variant_of(self, model: str | None, variants: Collection[str]) -> str | None:
        """Return the variant in a name like `NAME@mix-80`, None where there is none.

        Raise `ApiError` 404 for other models.
        """
        if model is None or model == BASE or self._has(model):
            return None
        name, _, variant = model.rpartition("@")
        if self._has(name) and variant in variants:
            return variant
        raise ApiError(404, f"no model '{model}'; see /v1/models", "model", "model_not_found")

    def _has(self, name: str) -> bool:
        return name in (self.served, *self.listed) or name in self.others


def _hub_names(source: str, name: str) -> set[str]:
    """Return the names of a model on the hub: with the owner and without, without a `:QUANT`."""
    if name == DEFAULT_MODEL:
        return {DEFAULT_HUB_NAME}
    found = _SNAPSHOT.search(source)
    if found:
        name = f"{found[1]}/{found[2]}"
    repository = name.partition(":")[0]
    return {name, repository, repository.rpartition("/")[2]}
