"""What can be wrong with a program, beyond what an engine says of its requests."""

from __future__ import annotations


class ProgramError(Exception):
    """The program asks for something that has no meaning, or that its back end cannot do."""


class UnknownVariable(ProgramError, KeyError):
    """A variable is read that nothing sets."""

    def __str__(self) -> str:  # KeyError would put quotes around the sentence.
        return str(self.args[0])


class InvalidAnswer(ProgramError):
    """An answer is not of the form that was asked for: cut short, or from a back end that does not
    hold answers to forms."""


class RunTimeout(ProgramError, TimeoutError):
    """The run's time was over before its program was."""


class RunCancelled(ProgramError):
    """The run was cancelled, or nobody held it any more."""
