"""The metrics that say what is served."""

from controller import Controller
from pruners.variant import BASE
from server.engine.loading.load import LoadedModel
from telemetry import ServerMetrics


def set_model_metrics(model: LoadedModel, metrics: ServerMetrics, controller: Controller) -> None:
    """Set the metrics of what is served, which changes only where something is learned."""
    is_trusted = controller.quality_guard.is_trusted
    shape = model.weights.shape
    base_bytes = sum(tensor.nbytes for tensor in model.weights.tensors())
    corrections = [part for parts in model.corrections.values() for part in parts.values()]
    correction_bytes = sum(tensor.nbytes for part in corrections for tensor in part.tensors())
    metrics.weights_resident.labels("base").set(base_bytes)
    metrics.weights_resident.labels("variants").set(correction_bytes)
    map_bytes = sum(tensor.nbytes for maps in model.maps.values() for tensor in maps.tensors())
    metrics.weights_resident.labels("readers").set(map_bytes)
    base_parameters = model.variants[BASE].parameters(shape)
    for name, variant in model.variants.items():
        share = variant.parameters(shape) / base_parameters
        metrics.variant.labels(name).info({"model": model.name, "bytes_ratio": f"{share:.4f}"})
        if name != BASE:
            metrics.variant_trusted.labels(name).set(is_trusted(name))
    for name, reader in model.readers.items():
        metrics.reader.labels(name).info({"model": model.name, "depth": str(reader.depth)})
        metrics.variant_trusted.labels(f"{BASE}+{name}").set(is_trusted(f"{BASE}+{name}"))
