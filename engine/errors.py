"""Every error that notewave raises on purpose. Each message says the fact, the reason and the cure."""


class NotewaveError(Exception):
    """Base of all errors that notewave raises on purpose: catch this to catch them all."""


class ArgumentError(NotewaveError):
    """An argument is not what it must be: of another type, out of range, an unknown name."""


class SamplingError(ArgumentError):
    """A sampling argument (sampler, steps, guidance, seed, noise) is out of range or of the wrong shape."""


class MidiError(NotewaveError):
    """The MIDI input cannot be read or turned into tokens."""


class VoiceError(NotewaveError):
    """A voice folder or a checkpoint is missing, incomplete, damaged or not what it says it is."""


class BackendError(NotewaveError):
    """A backend, plan or device is missing or cannot run what was asked."""


class TrainingError(NotewaveError):
    """A training configuration, or the state or data of a training run, cannot be used."""


class ToolError(NotewaveError):
    """A program or package that a command needs beside the runtime is missing, or failed."""


class OutputError(NotewaveError):
    """A result could not be written; whatever stood at the path before is untouched."""
