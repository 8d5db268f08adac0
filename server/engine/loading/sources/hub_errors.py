"""What the hub and the network answer, in one line each that says what to do."""

from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from server.engine.loading.sources.errors import ModelSourceError


@contextmanager
def hub_errors(repo: str) -> Iterator[None]:
    """Turn the errors of the hub's client within the context into `ModelSourceError`."""
    try:
        yield
    except GatedRepoError as error:
        raise ModelSourceError(
            f"{repo} is gated: accept its terms at {constants.ENDPOINT}/{repo} and set HF_TOKEN "
            "to a token of that account"
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelSourceError(
            f"the hub has no model {repo}, or it is private; set HF_TOKEN to see private ones"
        ) from error
    except HfHubHTTPError as error:
        raise ModelSourceError(f"cannot get {repo} from the hub: {_answer(error)}") from error
    except OfflineModeIsEnabled as error:
        raise ModelSourceError(_offline(repo, "HF_HUB_OFFLINE is set")) from error
    except httpx2.TransportError as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelSourceError(_offline(repo, f"the hub cannot be reached: {reason[0]}")) from error


def _offline(repo: str, why: str) -> str:
    return f"offline: {repo} is not in the cache ({why}); connect, or give a path"


def _answer(error: HfHubHTTPError) -> str:
    """Say what a status means."""
    status = error.response.status_code
    if status in (401, 403) and "authorization" not in error.response.request.headers:
        return f"it wants a token: set HF_TOKEN (status {status})"
    if status in (401, 403):
        return f"it refuses the token in HF_TOKEN (status {status})"
    if status == 429:
        return "too many requests (status 429); wait, or set HF_TOKEN"
    if status >= 500:
        return f"it is out of order (status {status}); try again"
    return f"it answers with status {status}"
