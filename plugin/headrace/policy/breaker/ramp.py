"""After a recovery: the share of calls let through grows from none to all over a time."""

from __future__ import annotations


class Ramp:
    """Which calls are let through while the share grows linearly. Not thread-safe.

    No dice: each call earns the share in force, and the call that completes a whole one goes
    through. So of any run of calls the share goes through, evenly spread (error diffusion). The
    first call always goes through: an upstream with little traffic is not held up.
    """

    __slots__ = ("_began_at", "_earned")

    def __init__(self, now: float) -> None:
        self._began_at = now
        self._earned = 1.0

    def left_s(self, ramp_s: float, now: float) -> float:
        """Seconds until every call is let through; 0 or less: it is now. Mutates where the clock has stepped back."""
        self._began_at = min(self._began_at, now)
        return self._began_at + ramp_s - now

    def share(self, ramp_s: float, now: float) -> float:
        """Share of calls let through at *now*, 0..1; to be asked where something is left of *ramp_s*."""
        return (now - self._began_at) / ramp_s

    def admits(self, share: float) -> bool:
        """Whether the call that asks now goes through, at *share*. Mutates."""
        self._earned += share
        if self._earned < 1.0:
            return False
        self._earned -= 1.0
        return True
