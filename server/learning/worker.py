"""The process that learns: `python -m server.learning.worker`, of the lowest priority.

It reads one line of JSON, a `WorkerOrder`, from its standard input, and writes what it does to its
standard output, a line of JSON each. It ends with the server: when its input is closed, and on
Linux also by the kernel. It may be stopped and continued at any time, and killed: what is finished
is on disk, and an artefact is there as a whole or not at all.
"""

import contextlib
import ctypes
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import Progress, TaskID

from pruners.support.errors import UserError
from server.learning.order import WorkerOrder

log = logging.getLogger("server.learning.worker")

BUSY = "another server is learning"
_LOCK = ".learning.lock"
_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG
_REPORT_SECONDS = 0.5


def report(kind: str, **more: Any) -> None:  # noqa: ANN401
    """Tell the server one thing; without a server there is nothing left to do."""
    try:
        print(json.dumps({"kind": kind, **more}), flush=True)
    except OSError:
        os._exit(1)


class ReportedProgress(Progress):
    """A progress display whose tasks are told to the server."""

    def __init__(self) -> None:
        super().__init__(console=Console(stderr=True), auto_refresh=False, disable=True)
        self._last = 0.0

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """Advance a task, and tell how far it is."""
        super().advance(task_id, advance)
        self._tell(task_id)

    def update(self, task_id: TaskID, **more: Any) -> None:  # noqa: ANN401
        """Update a task, and tell how far it is."""
        super().update(task_id, **more)
        self._tell(task_id)

    def _tell(self, task_id: TaskID) -> None:
        now = time.monotonic()
        if now - self._last >= _REPORT_SECONDS:
            self._last = now
            task = self._tasks[task_id]
            report("progress", step=task.description, share=task.percentage / 100)


def main() -> None:
    """Take the order and carry it out; errors are told to the server."""
    order = WorkerOrder(**json.loads(sys.stdin.readline()))
    _end_with_the_server(order.server)
    _be_quiet()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        with _alone(Path(order.target).parent):
            learn(order)
    except Timeout:
        report("busy", reason=BUSY)
    except UserError as error:
        log.error("%s", error)
        report("failed", reason=str(error))
    except OSError as error:
        log.exception("learning failed")
        where = f"{error.filename}: " if error.filename else ""
        report("failed", reason=f"{where}{error.strerror or error}")
    except Exception as error:
        log.exception("learning failed")
        first_line = next(iter(str(error).strip().splitlines()), "")
        report("failed", reason=f"{type(error).__name__}: {first_line}")


def learn(order: WorkerOrder) -> None:
    """Run the open stages one after the other, each into the kept artefact.

    A stage that cannot be done with this model is told and left out.
    """
    # Imported here: the priority is lowered before these seconds.
    import torch

    from pruners.architecture import UnsupportedModelError
    from pruners.artefact.folder import ArtefactError, load_artefact
    from server.engine.loading.source import resolve_model
    from server.learning.plan import open_stages, with_finished
    from server.learning.stages import RUN, LearnedModel, LearningJob, empty_artefact

    if order.threads is not None:
        torch.set_num_threads(order.threads)
    target = Path(order.target)
    artefact = None
    with contextlib.suppress(ArtefactError):  # there is none, or it is damaged and made again
        artefact = load_artefact(target)
    job = LearningJob(
        LearnedModel(resolve_model(order.model), order.name, order.fingerprint, order.precision),
        target,
        ReportedProgress(),
    )
    for stage in open_stages(artefact):
        report("stage", stage=stage.name)
        if artefact is None:
            artefact = empty_artefact(job)
        with job.checkpoint(stage.name) as checkpoint:
            try:
                artefact = RUN[stage.name](job, artefact, checkpoint)
            except (ArtefactError, UnsupportedModelError):  # no fault of the stage
                raise
            except ValueError as error:
                log.warning("%s are left out: %s", stage.title, error)
                report("refused", stage=stage.name, reason=str(error))
            artefact = with_finished(artefact, stage.name)
            artefact.save(target)
        report("saved", stage=stage.name)
    report("complete")


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one process at a time learn into a folder. Raises `Timeout` while another does.

    What killed ones have left of folders that they were writing is removed.
    """
    from server.engine.loading.model_cache import remove_stale

    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / _LOCK, timeout=0):
        remove_stale(folder)
        yield


def _end_with_the_server(server: int) -> None:
    """End when the server does, however that ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != server:  # it has ended before
            os._exit(1)

    def watch() -> None:
        while os.read(0, 1):  # the server writes no more
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _be_quiet() -> None:
    """Take the lowest priority that there is."""
    if os.name == "posix":
        os.nice(19)
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


if __name__ == "__main__":
    main()
