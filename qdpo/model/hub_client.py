"""The hub's client, given up on in good time: three retries and no more.

huggingface_hub retries five times, one request after the other and with growing pauses; with every file of a model
that is minutes of silence when the hub is down.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import httpx

RETRIES = 3
RETRIED = (408, 429, 500, 502, 503, 504)
"""Status codes that the client retries."""


class GaveUp(httpx.TransportError):
    """The same request has failed too often; the client does not retry this one."""


class PatientClient(httpx.Client):
    """Counts the failures of each request in a row."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.failures: dict[tuple[str, str], int] = {}

    def send(self, request: httpx.Request, **settings: Any) -> httpx.Response:
        """Send a request.

        Raises:
            GaveUp: it failed again, after three retries.
        """
        key = (request.method, str(request.url))
        limits = request.extensions.get("timeout", {})
        if limits.get("read") is None:
            # The client asks for some things without any limit, and would wait for ever for a hub that is stuck.
            request.extensions["timeout"] = dict.fromkeys(("connect", "read", "write", "pool"), _seconds())
        try:
            response = super().send(request, **settings)
        except httpx.TransportError as error:
            if self._fails(key):
                raise GaveUp(f"no answer after {RETRIES} retries: {error or type(error).__name__}") from error
            raise
        if response.status_code not in RETRIED:
            self.failures.pop(key, None)
        elif self._fails(key):
            response.close()
            raise GaveUp(f"HTTP error {response.status_code} after {RETRIES} retries")
        return response

    def _fails(self, key: tuple[str, str]) -> bool:
        self.failures[key] = self.failures.get(key, 0) + 1
        if self.failures[key] <= RETRIES:
            return False
        del self.failures[key]
        return True


def _seconds() -> float:
    """How long one answer may take to begin: HF_HUB_DOWNLOAD_TIMEOUT, 10 s without it."""
    from huggingface_hub import constants

    return float(constants.HF_HUB_DOWNLOAD_TIMEOUT)


@cache
def use_patient_client() -> None:
    """Let huggingface_hub, and what is built on it, use such clients from now on."""
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils._http import hf_request_event_hook

    set_client_factory(
        lambda: PatientClient(event_hooks={"request": [hf_request_event_hook]}, follow_redirects=True, timeout=None)
    )
