"""What keeps a service healthy and a run moving: a rate limit and a circuit breaker. Thread-safe."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class RateLimiter:
    """At most ``per_second`` calls a second, evenly spaced.

    Args:
        per_second: 0 = no limit.
        now, sleep: the clock, in seconds.
    """

    def __init__(
        self,
        per_second: float,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.gap = 1 / per_second if per_second else 0.0
        self._now, self._sleep, self._lock, self._next = now, sleep, threading.Lock(), 0.0

    def wait(self) -> None:
        """Returns when the caller may go."""
        with self._lock:
            now = self._now()
            turn = max(now, self._next)
            self._next = turn + self.gap
        if turn > now:
            self._sleep(turn - now)


class CircuitBreaker:
    """After ``limit`` failures in a row nobody is sent for ``pause_s`` seconds; then one may try.

    Args:
        limit: failures in a row.
        pause_s: how long the circuit stays open.
        now: the clock, in seconds.
    """

    def __init__(self, limit: int, pause_s: float, now: Callable[[], float] = time.monotonic) -> None:
        self.limit, self.pause_s, self._now = limit, pause_s, now
        self._lock, self._failures, self._until = threading.Lock(), 0, 0.0

    def allows(self) -> bool:
        """Whether to try now. After the pause one caller is let through; the next must wait for its report."""
        with self._lock:
            if self._failures < self.limit:
                return True
            if self._now() < self._until:
                return False
            self._until = self._now() + self.pause_s
            return True

    @property
    def open(self) -> bool:
        """Whether callers are held back until one of them has worked."""
        with self._lock:
            return self._failures >= self.limit

    @property
    def due(self) -> bool:
        """Whether the pause is over and the next caller would be the one that may try; asking takes nobody's turn."""
        with self._lock:
            return self._failures >= self.limit and self._now() >= self._until

    def report(self, worked: bool) -> None:
        with self._lock:
            self._failures = 0 if worked else self._failures + 1
            if self._failures == self.limit:
                self._until = self._now() + self.pause_s
