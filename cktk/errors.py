"""The errors that a user can mend. Each message is one line: what is wrong, where, and how to put it right."""


class CktkError(Exception):
    """Base of all errors that the command line prints as one line instead of a traceback."""


class ConfigError(CktkError):
    """A flag, a YAML key or a combination of settings cannot be used."""


class RegistryError(CktkError):
    """A name is not in a registry, or is there twice."""


class DataError(CktkError):
    """Input text, a shard or a manifest is missing, damaged or does not fit."""


class CheckpointError(CktkError):
    """A model folder or a training checkpoint is missing, damaged or does not fit."""
