"""A controller over a host and an engine whose state a test sets."""

from controller import (
    Analyzer,
    Catalogue,
    Controller,
    ControllerSettings,
    Decision,
    EngineStatus,
    IncomingRequest,
    RequestPreferences,
    SequenceStatus,
    StatusSources,
)
from controller.reading import ServedReader
from controller.sensitivity import Sensitivity
from policies import Objectives, RulePolicy
from pruners.reading.reader import PromptReader
from pruners.variant import BASE as BASE_NAME
from telemetry import Snapshot, present
from tests.support.step_times import BASE, HALF, SHALLOW, fitted_model

GIB = 2**30


class ControlledHost:
    """What a controller is shown: the time `now`, the engine's `status` and a `snapshot`."""

    def __init__(self) -> None:
        self.now = 100.0
        self.status = EngineStatus((), 4, 256, 0, 4096)
        self.snapshot = Snapshot(
            taken_at=0.0,
            memory_total_bytes=present(16 * GIB, "test"),
            memory_available_bytes=present(8 * GIB, "test"),
        )

    def set_requests(self, running: int, waiting: int, capacity: int = 4096) -> None:
        """Fill the engine with equal requests. `capacity` is the KV cache's, in tokens."""
        sequences = [
            SequenceStatus(BASE, i < running, 0, 200, 200, 64, 264)
            for i in range(running + waiting)
        ]
        self.status = EngineStatus(tuple(sequences), 4, 256, 64 * running, capacity)

    def controller(
        self,
        dwell: float = 1.0,
        sensitivity: Sensitivity | None = None,
        load: float = 0.0,
        budgets_free_memory: bool = True,
        **objectives: float | None,
    ) -> Controller:
        """Return a controller that already estimates this `load`."""
        catalogue = Catalogue(
            variants={BASE_NAME: BASE, "ffn-50": HALF, "depth-9": SHALLOW},
            kv_budgets=(512,),
            variant_loss={"ffn-50": 1.5, "depth-9": 0.7},
            kv_loss={512: 0.1},
            readers={
                "read-70": ServedReader(PromptReader("read-70", 8), 0.03),
                "read-40": ServedReader(PromptReader("read-40", 4), 0.2, ((256, 0.3), (1024, 0.1))),
            },
            pairs=(("depth-9", "read-40"),),
            keep_tasks=frozenset([BASE_NAME, "base+read-70"]),
            budgets_free_memory=budgets_free_memory,
        )
        controller = Controller(
            catalogue,
            fitted_model(),
            RulePolicy(),
            StatusSources(lambda: self.status, lambda: self.snapshot, lambda: self.now),
            ControllerSettings(Objectives(**{"ttft": 0.5, **objectives}), dwell=dwell),
            sensitivity,
        )
        controller._observer.estimators.load.observe(self.now, 3.16 * load)
        return controller


def decide(
    controller: Controller, prompt: int = 40, output: int = 100, **preferences: object
) -> Decision:
    """Decide on a request of so many prompt tokens and so many tokens allowed."""
    return controller.decide(
        IncomingRequest(
            Analyzer()("What is this?"), prompt, output, RequestPreferences(**preferences)
        )
    )
