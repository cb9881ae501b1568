"""The ledger of differential privacy: what of the budget of a model is spent.

It is a part of the state. So it comes from the log, it is in every snapshot, and a model that is
restored from a snapshot goes on with what was spent.
"""

from __future__ import annotations

import numpy as np

from livefactor_kernels.spec.privacy import Privacy


class BudgetSpent(Exception):
    """A release does not fit into the budget. The text says why."""


class Ledger:
    """The releases of a model.

    Attributes:
        privacy: the budget of a window.
        window: number of the window of the last release.
        releases: number of releases of that window.
        all_releases: number of releases of all windows.
    """

    def __init__(self, privacy: Privacy) -> None:
        self.privacy = privacy
        self.window = self.releases = self.all_releases = 0
        self._releases_max = privacy.releases_max if privacy.epsilon else 0

    @property
    def releases_max(self) -> int:
        """The most releases of a window."""
        return self._releases_max

    def window_at(self, seconds: float) -> int:
        """The window at a time, seconds since 1970.

        A clock that goes back gives no window again.
        """
        length = self.privacy.window_seconds
        return max(self.window, int(seconds) // length) if length else 0

    def released_in(self, window: int) -> int:
        """Number of the releases of a window, which is the last one or a later one."""
        return self.releases if window == self.window else 0

    def check(self, window: int, number: int) -> None:
        """Checks that a release fits.

        Raises:
            BudgetSpent: it has another number than the next one, its window is over, or the budget
                of the window is spent.
        """
        if number != self.all_releases + 1:
            raise BudgetSpent(f"release: expected number {self.all_releases + 1}, got {number}")
        if window < self.window:
            raise BudgetSpent(f"release: window {window} is over; the last one was {self.window}")
        if self.released_in(window) >= self._releases_max:
            raise BudgetSpent(
                f"privacy: the budget of window {window} is spent: {self._releases_max} releases have "
                f"epsilon {self.privacy.spent(self._releases_max):.4f} of {self.privacy.epsilon:g}"
            )

    def charge(self, window: int, number: int) -> None:
        """Charges a release.

        Raises:
            BudgetSpent: as `check`.
        """
        self.check(window, number)
        self.window, self.releases = window, self.released_in(window) + 1
        self.all_releases = number

    def arrays(self) -> dict[str, np.ndarray]:
        """The section of a snapshot."""
        return {"privacy": np.array([self.window, self.releases, self.all_releases], np.uint64)}

    def load(self, section: np.ndarray) -> None:
        """Takes the numbers of a section."""
        self.window, self.releases, self.all_releases = section.tolist()
