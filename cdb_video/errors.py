"""Every error that a user can cause: one line that a tool prints before it exits with status 2.

UserError
├── ConfigError      a key or a value of the configuration
├── DataError        an annotation file, a label, a missing video
│   └── UnknownSplitError
├── DecodeError      a video that cannot be read
├── WeightsError     a weights file that does not fit
└── RunError         a run folder or a checkpoint
    └── RunIsHeldError
"""


class UserError(ValueError):
    """Something the user can mend: its message names the key or file and what is allowed."""


class ConfigError(UserError):
    """A configuration key or value that cannot be used."""


class DataError(UserError):
    """Annotations or labels that cannot be used."""


class UnknownSplitError(DataError):
    """A split that the annotations do not have."""


class DecodeError(UserError):
    """A video, or a frame of it, that cannot be decoded."""


class WeightsError(UserError):
    """A weights file that cannot be read or does not fit the model."""


class RunError(UserError):
    """A run folder or checkpoint that cannot be read or written."""


class RunIsHeldError(RunError):
    """Another process is writing to the run."""


class StoppedError(Exception):
    """A run was asked to stop, by a signal, and has saved what it takes to go on.

    Not a UserError: nothing is wrong.
    """
