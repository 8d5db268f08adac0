"""What a server must not keep or say after a load is over."""

from server.testing import ServerProcess


def left_behind(server: ServerProcess) -> list[str]:
    """One line for everything that should be over and is not, and for tracebacks in the log."""
    if server.process.poll() is not None:
        return [f"the server ended with code {server.process.returncode}"]
    found = []
    try:
        server.wait_until_idle(seconds=30)
    except AssertionError:
        metrics = server.metrics()
        names = ("requests_running", "requests_waiting", "kv_cache_usage_ratio")
        found += [f"{name} is {metrics[f'trimtab_{name}']:g} in the end" for name in names]
    except OSError as error:
        found.append(f"/metrics: {type(error).__name__}")
    _, *tracebacks = server.log().split("Traceback (most recent call last):")
    raised = {_raised(traceback) for traceback in tracebacks}
    return [*found, *(f"traceback in the server's log: {line}" for line in sorted(raised))]


def _raised(traceback: str) -> str:
    """The line that names the exception: the first that is not indented."""
    lines = (line for line in traceback.splitlines() if line and not line.startswith(" "))
    return next(lines, "no end")[:200]
