"""Errors that a user can mend: each says what, with the value, and how to put it right."""

from __future__ import annotations


class UltraError(ValueError):
    """A problem with what the user gave; the command line prints it as one line.

    Attributes:
        exit_status: the status with which the command line ends.
    """

    exit_status = 2


class SettingError(UltraError):
    """A setting that is refused.

    Attributes:
        options: what it is called on the command line, the usual name first.
        rest: what is wrong with it.
    """

    def __init__(self, name: str, options: tuple[str, ...], rest: str) -> None:
        super().__init__(f"{name} {rest}")
        self.options, self.rest = options, rest


class PolicyError(UltraError):
    """A policy that is missing, damaged, not finite or made for other spaces."""


class RunDirectoryError(UltraError):
    """A run directory that is missing, damaged or belongs to another command."""


class DivergedError(UltraError):
    """Training or simulation produced numbers that are not finite."""


class BudgetExceededError(UltraError):
    """More environment steps were asked for than the budget holds."""


class WorkerError(UltraError):
    """An environment worker process failed or died; its traceback, if there is one, is a note of the error."""


class LanguageModelError(UltraError):
    """A language model that could not be reached, or that refuses the key or the request."""

    exit_status = 3
