"""What can go wrong with a request."""

from __future__ import annotations

from .answers import Fault, Problem


class ReplicatorError(Exception):
    """A request that did not do what it should."""


class Unreachable(ReplicatorError):
    """No answer came: the request may or may not have been carried out. Try again later."""


class BadAnswer(ReplicatorError):
    """The answer is not one of this API: something else listens there, or another version."""


class Refused(ReplicatorError):
    """The replicator refused the request; nothing has changed.

    `retry_after`: seconds to wait before the next attempt, where the answer says so.
    """

    def __init__(self, problem: Problem, retry_after: float | None = None) -> None:
        super().__init__(problem, retry_after)
        self.problem = problem
        self.retry_after = retry_after

    @property
    def code(self) -> str:
        """Which kind of problem, for programs: `stale-epoch`, `invalid-map` and so on."""
        return self.problem.code

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self.problem.status

    @property
    def detail(self) -> str:
        """What is wrong and what to do."""
        return self.problem.detail

    @property
    def epoch(self) -> int | None:
        """The model's present epoch, where that is what the request disagrees with."""
        return self.problem.epoch

    @property
    def faults(self) -> tuple[Fault, ...]:
        """What is wrong with the document, the first of it."""
        return self.problem.faults

    def __str__(self) -> str:
        lines = [f"{self.status} {self.code}: {self.detail}"]
        lines += [f"{fault.path}: {fault.message}" for fault in self.faults]
        if self.problem.more_faults:
            lines.append(f"and {self.problem.more_faults} more")
        return "\n".join(lines)
