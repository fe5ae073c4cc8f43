"""The exceptions: everything that a user can cause is a `LepError` with a complete message."""


class LepError(Exception):
    """A fault that the user can fix; the command line prints it and exits with code 2."""


class CheckpointError(LepError):
    """A model folder that is missing, incomplete, unsafe, or inconsistent with its tokenizer."""


class TokenizerError(LepError):
    """A tokenizer that cannot be read, extended, or published without changing its meaning."""


class CorpusError(LepError):
    """Text or prompts that are missing, unreadable, or empty."""


class TrainingError(LepError):
    """A training that failed for a reason that the user can fix."""


class RecipeError(LepError):
    """An invalid recipe; the message names file and line."""


class OutputError(LepError):
    """An output that cannot be written: it exists already, or the disk is too small."""
