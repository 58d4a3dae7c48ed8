"""How busy the children were on average of late: what a load balancer is told by. Runs in the arbiter.

How many are busy at one moment says little where requests take milliseconds: with four children that are busy
80 % of the time a look finds from none to two free, and a balancer that follows such looks sends each wave to
where the last one was not. So the time that children were busy is added up, which the scoreboard knows at any
moment, and compared with what it was at the looks before.
"""

from __future__ import annotations

from collections import deque

WINDOW = 3.0
"""Seconds that the average is over at least, where looks are so frequent. A balancer that is told late of its
own doing swings to and fro, the more the shorter this is."""

STALE = 10.0
"""Seconds after which a look before is of no use."""

SPACING = 0.05
"""Seconds that looks are apart at least to be kept, however many ask."""


class Utilization:
    """The mean number of busy children between now and a look about WINDOW seconds ago."""

    def __init__(self) -> None:
        self._looks: deque[tuple[float, float]] = deque()

    def look(self, now: float, spent: float, running: float, busy: int) -> float:
        """How many children were busy on average.

        spent: seconds that children were busy for requests they have answered, since whenever; running: those
        of the requests that run now; busy: how many run one, the answer where there was no look before.
        """
        total = spent + running
        looks = self._looks
        while looks and now - looks[0][0] > STALE:
            looks.popleft()
        while len(looks) > 1 and now - looks[1][0] >= WINDOW:
            looks.popleft()
        at, before = looks[0] if looks else (now, total)
        if not looks or now - looks[-1][0] >= SPACING:
            looks.append((now, total))
        if now - at < SPACING:
            return float(busy)
        # What ran and was never answered has gone from the total.
        return max(total - before, 0.0) / (now - at)
