"""Requests to servers: the time and the size of a reply are bounded."""

import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from lep.errors import LepError
from lep.limits import REPLY_BYTES, REPLY_SECONDS, RETRY_SECONDS

PIECE_BYTES = 1 << 16
T = TypeVar("T")


class _Patient(Retry):
    """Waits as long as a busy server asks, but not for hours."""

    def get_retry_after(self, response: Any) -> float | None:
        seconds = super().get_retry_after(response)
        return None if seconds is None else min(seconds, RETRY_SECONDS.value)


def retrying(tries: int, statuses: tuple[int, ...], connections: int) -> requests.Session:
    """A session that repeats a request that fails, or is answered by one of `statuses`."""
    session = requests.Session()
    retry = _Patient(tries - 1, backoff_factor=0.5, status_forcelist=statuses, allowed_methods=None)
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(max_retries=retry, pool_maxsize=connections))
    return session


def whole_reply(
    session: requests.Session, method: str, url: str, timeout: int, **options: Any
) -> requests.Response:
    """The whole reply to a request; `timeout` is for a piece of it, `REPLY_SECONDS` for all tries.

    Raises `requests.Timeout` when it takes longer, however little comes at a time, and `LepError`
    for a reply above `REPLY_BYTES`.
    """
    seconds = REPLY_SECONDS.value
    deadline = time.monotonic() + seconds
    options |= {"stream": True, "timeout": min(timeout, seconds)}

    def whole() -> requests.Response:
        with session.request(method, url, **options) as response:
            content = bytearray()
            for piece in response.iter_content(PIECE_BYTES):
                content += piece
                REPLY_BYTES.check(len(content), f"the reply of {url}", LepError)
                if time.monotonic() > deadline:
                    break
            response._content = bytes(content)
            response.encoding = response.encoding or "utf-8"  # guessing takes minutes
            return response

    return _within(seconds, whole)


def _within(seconds: int, call: Callable[[], T]) -> T:
    """The result of a call. One that takes longer is left to a thread that ends with the process.

    A socket's own timeout starts again with every byte.
    """
    results: list[T] = []
    faults: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:
            faults.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(min(seconds, threading.TIMEOUT_MAX))
    if faults:
        raise faults[0]
    if not results:
        raise requests.Timeout(
            f"no whole reply within {seconds:,} seconds; {REPLY_SECONDS.variable} allows more"
        )
    return results[0]
