"""Starts the worker when nobody waits, stops it when somebody does, and serves what it finishes."""

import logging
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pruners.architecture import Shape
from server.learning.conditions import Conditions, HostState, LearningMode
from server.learning.order import WorkerOrder
from server.learning.plan import STAGES, Stage, describe_stages, needed_bytes
from server.learning.process import Report, WorkerProcess
from telemetry import ServerMetrics

log = logging.getLogger(__name__)

_TICK_SECONDS = 0.25
_AGAIN_SECONDS = 60.0  # until the next try where another server learns, or memory was short
_MAX_DOUBLINGS = 6  # of that time, with each time that memory was short
_FAILED_SECONDS = 5.0  # until the next try after a failure
_MAX_FAILURES = 3

State = Literal["off", "waiting", "running", "paused", "complete", "refused", "failed"]

_FINAL = ("complete", "refused", "failed")
"""States after which nothing more happens before the next start."""


@dataclass(frozen=True, slots=True)
class LearningStatus:
    """What is told of learning: the mode, the state and, where there is one, the `reason` for it.

    `stage` is worked on, at its `step`, of which the share `progress` (0..1) is done. `done` are
    the names of finished stages. `next_start` are variants that are served after the next start.
    """

    mode: LearningMode
    state: State
    reason: str = ""
    stage: str | None = None
    step: str = ""
    progress: float = 0.0
    done: tuple[str, ...] = ()
    next_start: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return it for `/trimtab/status`, with a list of all stages."""
        stages = describe_stages(self.done, self.stage)
        return {**asdict(self), "stages": stages}

    def set_metrics(self, metrics: ServerMetrics) -> None:
        """Set the metrics of learning."""
        metrics.learning_running.set(self.state == "running")
        metrics.learning_step_progress.set(self.progress)
        for stage in STAGES if self.state != "off" else ():
            metrics.learning_stage_done.labels(stage.name).set(stage.name in self.done)


@dataclass(frozen=True, slots=True)
class LearningPlan:
    """What the worker is told, the sizes of the model, and the stages that are finished.

    `offer` takes the kept artefact into the running server; it returns the names of variants that
    have to wait for the next start.
    """

    order: WorkerOrder
    shape: Shape
    done: tuple[str, ...]
    offer: Callable[[Path], tuple[str, ...]]


class Supervisor:
    """Learns in the background from `start` to `stop`.

    `note_request` and `status` may be called by any thread. A thread of its own does the rest. The
    worker is a child of that thread, with which it would end.
    """

    def __init__(self, plan: LearningPlan, mode: LearningMode, host: HostState) -> None:
        self._plan = plan
        self._target = Path(plan.order.target)
        self._clock = host.clock
        self._conditions = Conditions(mode, host)
        self._status = LearningStatus(mode, "waiting", done=plan.done)
        self._seen = self._version()
        self._process: WorkerProcess | None = None
        self._updating = threading.Lock()  # of the status and of what is saved
        self._gate = threading.Lock()  # between finding that the worker may run, and letting it
        self._stopping = threading.Event()
        self._not_before = 0.0
        self._failures = self._shortages = 0
        self._saved: list[str] = []  # stages that nobody was told of
        self._last: Report = {}  # that ends the worker
        self._thread = threading.Thread(target=self._run, name="learning", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the worker and the thread."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def note_request(self) -> None:
        """Stop the worker at once, since a request has come."""
        with self._gate:
            process = self._process
            if self._conditions.note_request() and process is not None:
                process.pause()

    def status(self) -> LearningStatus:
        """Return how far it is."""
        return self._status

    def _run(self) -> None:
        try:
            while not self._stopping.is_set() and self._status.state not in _FINAL:
                self._tick()
                self._stopping.wait(_TICK_SECONDS)
        except Exception as error:
            log.exception("learning ends")
            self._set("failed", f"{type(error).__name__}: {error}")
        finally:
            if self._process is not None:
                self._process.kill()
            if not self._stopping.is_set():
                self._take_finished()

    def _tick(self) -> None:
        with self._updating:
            saved, self._saved = self._saved, []
        self._take_finished()
        if saved:  # and offered by now
            self._update(done=(*self._status.done, *saved))
        stage = self._next_stage()
        if stage is None:
            self._set("complete")
            return
        needed = needed_bytes(self._plan.shape, stage, self._plan.order.precision)
        process = self._process
        if process is None:
            self._start(needed)
        elif process.exit_code is not None:
            self._process = None
            self._note_end(process.exit_code)
        else:
            self._control(process, needed)

    def _next_stage(self) -> Stage | None:
        done = self._status.done
        return next((stage for stage in STAGES if stage.name not in done), None)

    def _start(self, needed: int) -> None:
        reason = self._conditions.never_fits(needed)
        if reason is not None:
            log.warning("nothing is learned: %s", reason)
            self._set("refused", reason)
            return
        if self._clock() < self._not_before:
            return
        verdict = self._conditions.verdict(needed, is_running=False)
        if verdict.reason is not None:
            self._set("waiting", verdict.reason)
            return
        log.info("learning of %s in the background", self._plan.order.name)
        self._last = {}
        log_path = self._target.with_name(f".{self._target.name}.log")
        self._process = WorkerProcess(self._plan.order, log_path, self._on_report)
        self._set("running")
        self._control(self._process, needed)  # a request may have come meanwhile

    def _control(self, process: WorkerProcess, needed: int) -> None:
        with self._gate:
            verdict = self._conditions.verdict(needed, is_running=True)
            if verdict.reason is None:
                process.resume()
                self._set("running")
                return
            process.pause()
            self._set("paused", verdict.reason)
        if verdict.kill:
            process.kill()
            self._process = None
            self._not_before = self._clock() + _AGAIN_SECONDS * 2**self._shortages
            self._shortages = min(self._shortages + 1, _MAX_DOUBLINGS)
            self._set("waiting", verdict.reason)

    def _on_report(self, report: Report) -> None:
        """Take a report of the worker, in the thread that reads them."""
        kind, stage = report["kind"], report.get("stage")
        if kind == "progress":
            self._update(step=str(report["step"]), progress=float(report["share"]))
        elif kind == "stage":
            self._update(stage=stage, step="", progress=0.0)
        elif kind == "refused":
            log.warning("not learned: %s: %s", stage, report["reason"])
        elif kind == "saved":
            with self._updating:
                self._saved.append(str(stage))
            self._update(stage=None, step="", progress=0.0)
        else:
            self._last = report

    def _note_end(self, code: int) -> None:
        """Say how the worker ended, and when the next one may start."""
        kind = self._last.get("kind")
        if kind == "complete":
            self._update(done=tuple(stage.name for stage in STAGES))
            self._set("complete")
            log.info("all of %s is learned", self._plan.order.name)
            return
        reason = str(self._last.get("reason", f"the worker ended with code {code}"))
        if kind == "busy":
            self._not_before = self._clock() + _AGAIN_SECONDS
            self._set("waiting", reason)
            return
        self._not_before = self._clock() + _FAILED_SECONDS
        self._failures += 1
        log.warning("learning failed: %s", reason)
        self._set("failed" if self._failures == _MAX_FAILURES else "waiting", reason)

    def _take_finished(self) -> None:
        """Offer what is in the kept artefact since the last time."""
        version = self._version()
        if version is None or version == self._seen:
            return
        self._seen = version
        try:
            later = self._plan.offer(self._target)
        except Exception:
            log.exception("what was learned is not served before the next start")
        else:
            self._update(next_start=later)

    def _version(self) -> int | None:
        """Return what changes with the kept artefact, None if there is none."""
        try:
            return (self._target / "variants.json").stat().st_mtime_ns
        except OSError:
            return None

    def _set(self, state: State, reason: str = "") -> None:
        self._update(state=state, reason=reason)

    def _update(self, **changes: Any) -> None:  # noqa: ANN401
        with self._updating:
            self._status = replace(self._status, **changes)
