"""Every error that notewave raises on purpose. Each message says the fact, the reason and the cure."""


class NotewaveError(Exception):
    """Base of all errors that notewave raises on purpose: catch this to catch them all."""


class MidiError(NotewaveError):
    """The MIDI input cannot be read or turned into tokens."""


class VoiceError(NotewaveError):
    """A voice folder or a checkpoint is missing, incomplete, damaged or not what it says it is."""


class BackendError(NotewaveError):
    """A backend, plan or device is missing or cannot run what was asked."""


class SamplingError(NotewaveError):
    """A sampling argument (sampler, steps, guidance, seed, noise) is out of range or of the wrong shape."""


class TrainingError(NotewaveError):
    """A training configuration, or the state or data of a training run, cannot be used."""


class OutputError(NotewaveError):
    """A result could not be written; whatever stood at the path before is untouched."""
