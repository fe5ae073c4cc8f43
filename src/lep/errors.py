"""The exception tree: everything a user can cause is a `LepError`, and its message is the whole story."""


class LepError(Exception):
    """A fault that the user can mend; the command line prints it as one sentence and exits with code 2."""


class CheckpointError(LepError):
    """A model folder that is missing, incomplete, unsafe, or inconsistent with its tokenizer."""


class TokenizerError(LepError):
    """A tokenizer that cannot be read, extended, or published without changing its meaning."""


class CorpusError(LepError):
    """Text or prompts that are missing, unreadable, or empty."""


class TrainingError(LepError):
    """A training that went wrong for a reason that the user can mend."""


class RecipeError(LepError):
    """A recipe that does not say what it must; the message names file and line."""


class OutputError(LepError):
    """A place that cannot be written: it exists already, or the disk is too small."""
