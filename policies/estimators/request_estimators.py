"""All that is estimated from the requests of a server, real or simulated."""

from collections.abc import Callable

from policies.estimators.answer_length import AnswerLengthEstimator
from policies.estimators.dwell import DwellTracker
from policies.estimators.load import LoadEstimator
from policies.estimators.request_sizes import RequestSizes
from policies.estimators.wait_bias import WaitBiasEstimator


class RequestEstimators:
    """The estimators that the controller and the simulated server both keep.

    `clock` returns seconds. Instances are not thread-safe: one thread (in the server, that of the
    event loop) makes all calls.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.load = LoadEstimator()
        self.sizes = RequestSizes()
        self.wait_bias = WaitBiasEstimator()
        self.answer_length = AnswerLengthEstimator()
        self.dwell = DwellTracker(clock)

    def observe_arrival(self, work: float, idle: bool) -> None:
        """Add a request that arrives now and takes `work` seconds of the base's full batches.

        `idle` says that no other request is in the engine.
        """
        self.load.observe(self._clock(), work, idle)
        self.sizes.observe(work)
