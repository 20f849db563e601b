"""A namespace that may be away: callers do without it meanwhile, at no cost, and have it again when it is back.

States::

    usable ── a call fails, retryably ──► away ── a probe in the background succeeds ──► usable

Thread-safe. While it is away nobody waits for it but the background thread.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from kelvin._kelvin import Namespace
from kelvin.errors import KelvinError

logger = logging.getLogger(__name__)

PROBE_SECONDS_FIRST = 0.1
PROBE_SECONDS_MOST = 2.0


class Link:
    """Opens a namespace and watches over it."""

    def __init__(self, connect: Callable[[], Namespace]) -> None:
        """Opens it. A store that is away is tried again; one that refuses raises at once."""
        self._connect = connect
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._probe_now = threading.Event()
        self._back = threading.Event()
        self._namespace: Namespace | None = None
        self._usable = False
        self._mending = False
        self.failures = 0
        try:
            self._namespace = connect()
            self._usable = True
        except KelvinError as error:
            if not error.retryable:
                raise
            self.failed("reach the store", error)

    def get(self) -> Namespace | None:
        """The namespace, or None as long as it is away."""
        return self._namespace if self._usable else None

    def wait(self, seconds: float) -> Namespace | None:
        """The namespace; where it is away, asks for it at once and waits so long that it is back."""
        if not self._usable:
            self._back.clear()
            self._probe_now.set()
            # It may have come back just before.
            if not self._usable:
                self._back.wait(seconds)
        return self.get()

    def failed(self, action: str, error: KelvinError) -> None:
        """Takes note of a call that failed."""
        with self._lock:
            self.failures += 1
            if not error.retryable:
                logger.warning("kelvin: %s: %s", action, error)
                return
            self._usable = False
            if self._mending or self._stop.is_set():
                return
            self._mending = True
        logger.warning("kelvin: %s: %s; going on without the store until it answers", action, error)
        threading.Thread(target=self._mend, name="kelvin-link", daemon=True).start()

    def _mend(self) -> None:
        pause = PROBE_SECONDS_FIRST
        while True:
            self._probe_now.wait(pause)
            self._probe_now.clear()
            if self._stop.is_set():
                return
            pause = min(2 * pause, PROBE_SECONDS_MOST)
            try:
                if self._namespace is None:
                    self._namespace = self._connect()
                else:
                    self._namespace.match([bytes(16)])
            except KelvinError as error:
                if error.retryable:
                    continue
                logger.error("kelvin: the store refuses: %s", error)
                return
            with self._lock:
                self._usable = True
                self._mending = False
            self._back.set()
            logger.warning("kelvin: the store answers again")
            return

    def close(self) -> None:
        """Ends the session, should there be one."""
        self._stop.set()
        self._probe_now.set()
        usable, self._usable = self._usable, False
        if usable and self._namespace is not None:
            try:
                self._namespace.close()
            except KelvinError as error:
                logger.debug("kelvin: close: %s", error)
