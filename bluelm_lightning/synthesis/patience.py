"""Patience with a server: requests wait while it is down or asks for time, but not for ever."""

from __future__ import annotations

import logging
import math
import threading
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from bluelm_lightning.rl.rewards.limits import CircuitBreaker

LONGEST_ASKED = 600.0  # seconds that a server may ask for; a day's quota is not waited for
_PAUSES = 5  # of the breaker, without one reply, until nobody waits any more
_STEP = 0.05  # seconds between two looks

log = logging.getLogger(__name__)


class Gate:
    """Lets requests through to a server, and holds them back while it fails. Thread-safe.

    Args:
        limit: failures in a row after which they wait.
        pause_s: seconds that they wait; then one goes, and all if it works.
    """

    def __init__(self, limit: int, pause_s: float) -> None:
        self.breaker, self.longest = CircuitBreaker(limit, pause_s), _PAUSES * pause_s
        self._lock, self._stopped = threading.Lock(), threading.Event()
        self._since, self._until = math.inf, math.inf  # first failure since a reply, and how long they are waited out
        self._not_before, self._told, self._reason = 0.0, False, ""

    def wait(self) -> bool:
        """Returns when a request may go; False: it should not, the server is down for too long or asks for too much."""
        while not self._stopped.is_set():
            with self._lock:
                now = time.monotonic()
                early, over = self._not_before - now, now > self._until
            if early <= 0 and self.breaker.allows():
                return True
            if early > LONGEST_ASKED or (early <= 0 and over):
                return False
            self._tell(early)
            self._stopped.wait(_STEP)
        return False

    def worked(self) -> None:
        """A request was answered."""
        with self._lock:
            self._since, self._until, self._told = math.inf, math.inf, False
        self.breaker.report(True)

    def failed(self, reason: str, asked_s: float | None = None) -> bool:
        """A request was not answered.

        Args:
            reason: for the log.
            asked_s: the server asks to be left alone for so many seconds.

        Returns:
            Whether it is the request's own failure; not while the server is known to be down, or asks for time.
        """
        with self._lock:
            now, self._reason = time.monotonic(), reason
            if self._since == math.inf:
                self._since, self._until = now, now + self.longest
            if asked_s is not None:
                self._not_before = max(self._not_before, now + asked_s)
                self._until = max(self._until, min(self._not_before, self._since + LONGEST_ASKED) + self.longest)
            own = now > self._until or (asked_s is None and not self.breaker.open)
        if asked_s is None:
            self.breaker.report(False)
        return own

    def pause(self, seconds: float) -> None:
        """Sleeps; not on after :meth:`stop`."""
        self._stopped.wait(seconds)

    def start(self) -> None:
        """Opens it again."""
        self._stopped.clear()

    def stop(self) -> None:
        """Nobody waits any more, and none may go."""
        self._stopped.set()

    def _tell(self, early: float) -> None:
        with self._lock:
            told, self._told = self._told, True
        if not told:
            why = f"asks for {early:.0f} s" if early > 0 else f"{self.breaker.limit} failures in a row"
            log.warning("waiting: %s, the last: %s", why, self._reason)


def asked_seconds(header: str | None) -> float | None:
    """What ``Retry-After`` says: seconds or a date; None where it says nothing that can be read."""
    text = (header or "").strip()
    if text.isdecimal():
        return float(text)
    try:
        then = parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(0.0, (then.replace(tzinfo=then.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
