"""The one error tree. Every message says where, what was found, what was expected, and the cure."""


class FeatureStoreError(Exception):
    """Error that a user can fix: its message is shown without a traceback.

    Attributes:
        exit_code: Exit code of the command that it ends; 2 means that the command could not start.
    """

    exit_code = 2


class ConfigError(FeatureStoreError):
    """A config file, an override or a command-line flag is wrong."""


class OutputError(FeatureStoreError):
    """What a command prints, or a list or recording that it makes, cannot be written."""


class WeightsError(FeatureStoreError):
    """Pretrained weights are missing, unreadable, or do not fit the network."""


class ManifestError(FeatureStoreError):
    """A corpus manifest is missing or contradicts itself."""


class MouthError(FeatureStoreError):
    """One mouth npz cannot be used; never stops a build."""


class AudioError(FeatureStoreError):
    """One wav cannot be used, or does not hold what its manifest says."""


class StoreError(FeatureStoreError):
    """A store is missing, damaged, or was made by something else than asked for."""


class UnreachableError(StoreError):
    """A store or a file of it cannot be reached; what lies there may be whole."""


class UnknownKeyError(StoreError, KeyError):
    """A store holds no utterance of this name; a KeyError, as any mapping raises."""

    __str__ = Exception.__str__  # KeyError's would put the message in quotes


class UnreadableError(StoreError):
    """A file of a store cannot be read, now or by this user; it need not be damaged."""

    def __init__(self, where: str, error: OSError) -> None:
        super().__init__(
            f"{where}: cannot be read ({error.strerror or error}), which is no damage: check the rights of the file "
            "and of its folders, and the file system, then try again"
        )


class TrainingError(FeatureStoreError):
    """A training run cannot continue."""

    exit_code = 1
