"""Every error that misotune raises on purpose.

    MisotuneError                 one line for the user: what is wrong, where, and the cure
    |-- StoppedError              a signal ended a run, which can go on (exit code 128 + signal)
    |-- UsageError                the command or recipe is wrong (exit code 2)
    |   `-- RecipeError           a recipe key or value, with file and line
    `-- RunError                  a stage failed (exit code 1)
        |-- ToldError             likewise, and another process on this host says why
        |-- DataError             a row or file, named
        |-- LayoutError           a row cannot be laid out for this model, with the reason
        `-- UnsupportedModelError the model cannot run MISO attention exactly

Library code raises these; only the command line prints them and exits.
"""


class MisotuneError(Exception):
    """Base of all errors that a user can cause or cure; the message is one readable line."""

    exit_code: int = 1


class StoppedError(MisotuneError):
    """A signal ended a run; the message says what is saved and how to go on.

    Args:
        message: For the user.
        signal_number: The signal; the exit code is 128 more, as shells have it.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


class UsageError(MisotuneError):
    """A command was given something it cannot use; nothing was started."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe holds an unknown key or a wrong value; the message has one line per problem."""


class RunError(MisotuneError):
    """A stage started and could not finish."""


class ToldError(RunError):
    """A stage failed on all ranks for one reason, which another process on this host says: it is not printed again."""


class DataError(RunError):
    """A data file or one of its rows cannot be used; the message names file and line."""


class LayoutError(RunError):
    """A sample cannot be laid out as tokens with a proven response span."""


class UnsupportedModelError(RunError):
    """The model has a feature under which MISO attention would not be exact."""
