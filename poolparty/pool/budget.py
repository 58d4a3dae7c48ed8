"""What all pools of a server may have together: children, and memory. Decides; does no I/O.

Each pool's minimum is its own, whatever the others want. Beyond the minima whoever needs a child first has
it, as long as the total lasts. Where the children together use more memory than they may, no pool grows, and
one idle child a look leaves, from the pool that is furthest beyond its minimum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from poolparty.pool.policy import Policy


@dataclass(frozen=True, slots=True)
class Budget:
    """children: of all pools, 0 for no limit but their own. memory: bytes that they may use, 0 for no
    limit."""

    children: int = 0
    memory: int = 0

    def allot(self, policy: Policy, policies: Sequence[Policy], used: int) -> None:
        """Tell a pool how far it may grow, before it decides. policies: of all pools. used: bytes that all
        children have."""
        room: int | None = None
        if self.children:
            room = self.children - sum(other.target for other in policies if other is not policy)
        if self.exceeded(used):
            room = policy.target if room is None else min(room, policy.target)
        policy.set_room(room)

    def exceeded(self, used: int) -> bool:
        """Whether the children use more than they may."""
        return 0 < self.memory < used

    def give_up(self, policies: Sequence[Policy], idle: Sequence[int]) -> Policy | None:
        """Whose child is to leave for want of memory; None: all that could go have gone. idle: how many
        children of each pool run nothing."""
        beyond = [
            (policy.target - policy.limits.min_size, policy)
            for policy, count in zip(policies, idle, strict=True)
            if count and policy.target > policy.limits.min_size
        ]
        return max(beyond, key=lambda pair: pair[0])[1] if beyond else None
