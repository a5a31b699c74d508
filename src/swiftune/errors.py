"""Every mistake that Swiftune explains, as one tree.

    SwiftuneError                    has a sentence for the user, a cure, and an exit code
    ├── UsageError          exit 2   what was asked for cannot be done as asked
    │   ├── ArgumentsError           flags, YAML keys (several mistakes, reported together)
    │   ├── NotFoundError            an id or path that leads nowhere, with the places looked in
    │   ├── DataError                a data file or its rows
    │   ├── TemplateError            a chat template that cannot be rendered for training
    │   ├── ModelError               a model folder that is no usable model
    │   ├── AdapterError             an adapter that is none, or fits another base
    │   └── CheckpointError          a checkpoint that cannot be resumed from
    ├── RunError            exit 1   something failed while running
    │   ├── OutputError              a folder or file could not be written
    │   ├── DownloadError            a hub answered with an error, or not at all
    │   ├── ParityError              an exported model does not answer as what it was made from
    │   ├── OutOfMemoryError         even one row at a time does not fit
    │   ├── DivergedError            steps in a row whose loss or gradient is not finite
    │   ├── EvaluationError          a task that was to be scored while training could not be
    │   ├── EngineEndedError         the engine has ended, and answers nothing more
    │   └── MissingPackageError      an optional package is needed, with the line that installs it
    └── Interrupted         exit 130 Ctrl-C; what was to be saved has been saved (exit 143: SIGTERM)

A user's mistake is always one of these and is shown without a traceback. An ``assert`` is for us.
"""

from __future__ import annotations

from collections.abc import Sequence


class SwiftuneError(Exception):
    """Base of the tree.

    Args:
        what: what is wrong and where (the flag, or the file and line), one sentence.
        cure: what would be right; empty where nothing helps.
    """

    exit_code = 1

    def __init__(self, what: str, cure: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.cure = cure

    def __str__(self) -> str:
        between = "\n" if "\n" in self.what else " "
        return f"{self.what}{between}{self.cure}".strip()


class UsageError(SwiftuneError):
    """What was asked for cannot be done as asked."""

    exit_code = 2


class ArgumentsError(UsageError):
    """One or more mistakes in flags or configuration keys, reported together.

    Args:
        mistakes: a sentence each.
    """

    def __init__(self, mistakes: Sequence[str]) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = list(mistakes)


class NotFoundError(UsageError):
    """An id or path that leads nowhere; ``what`` lists every place that was looked in."""


class DataError(UsageError):
    """A data file that cannot be read, or rows that cannot be used."""


class TemplateError(UsageError):
    """A chat template that is missing, or cannot be rendered by prefixes."""


class ModelError(UsageError):
    """A model folder that is no usable model."""


class AdapterError(UsageError):
    """An adapter folder that is none, or that was made for another base model."""


class CheckpointError(UsageError):
    """A checkpoint that cannot be resumed from."""


class RunError(SwiftuneError):
    """Something failed while running."""


class OutputError(RunError):
    """A folder or file could not be written."""


class DownloadError(RunError):
    """A hub answered with an error, or did not answer."""


class ParityError(RunError):
    """An exported model does not answer as what it was made from. Nothing of it is left."""


class OutOfMemoryError(RunError):
    """Memory ran out, and no smaller piece of the work is left to try. What was trained before has been saved."""


class DivergedError(RunError):
    """Several steps in a row had a loss or a gradient that is not finite. The checkpoint before them is the last."""


class EvaluationError(RunError):
    """A task could not be scored while training, as a judge is gone. What was trained before has been saved."""


class EngineEndedError(RunError):
    """The engine was closed, or its process has ended; it answers nothing more."""


class MissingPackageError(RunError):
    """An optional package is needed; ``cure`` holds the line that installs it."""


class Interrupted(SwiftuneError):  # noqa: N818 - not an error: the user asked for it
    """Ctrl-C or SIGTERM. Raised after everything that had to be saved was saved."""

    exit_code = 130
