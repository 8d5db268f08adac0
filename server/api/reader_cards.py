"""What is told of the readers of a model: how deep they read, what that costs and loses."""

from pruners.artefact.table import Table
from pruners.reading.reader import PromptReader
from pruners.variant import BASE
from server.engine.loading.load import LoadedModel


def reader_cards(model: LoadedModel) -> list[dict[str, object]]:
    """Return the served readers, each as an object for JSON. What was not measured is absent.

    `compute` is the share of the base's multiply-adds for reading, `map_bytes` what the maps take,
    which readers of one depth share. `kl` is in nats per written
    token; half widths are of 95 % intervals. `tasks` have the accuracy after this reader and, as
    `base`, after reading in full.
    """
    table = Table() if model.artefact is None else model.artefact.table
    return [_card(reader, table) for reader in model.readers.values()]


def _card(reader: PromptReader, table: Table) -> dict[str, object]:
    name = reader.name
    card: dict[str, object] = {"name": name, "depth": reader.depth}
    cost, losses = table.reader_cost.get(name), table.reader_quality.get(name, {})
    if cost is not None:
        card |= {"compute": cost.share, "map_bytes": cost.bytes}
    by_length = {length: loss.kl for length, loss in losses.items() if length != "all"}
    if "all" in losses:
        loss = losses["all"]
        card |= {"kl": loss.kl, "kl_half_width": loss.half_width, "agreement": loss.agreement}
    if by_length:
        card["kl_by_length"] = by_length
    tasks = {}
    for task, accuracies in table.reading_tasks.items():
        found, base = accuracies.get(name), accuracies.get(BASE)
        if found is not None:
            tasks[task] = {"accuracy": found.acc, "half_width": found.half_width}
            tasks[task] |= {} if base is None else {"base": base.acc}
    return card | ({"tasks": tasks} if tasks else {})
