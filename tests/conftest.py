from pathlib import Path

import pytest

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def reference_voice(tmp_path_factory):
    """Folder of the reference checkpoint exported as a float32 voice, without a vocoder."""
    from notewave.export.checkpoints import load_diffusers
    from notewave.export.convert import export_voice

    folder = tmp_path_factory.mktemp("voices") / "reference"
    checkpoint = load_diffusers(DATA / "reference" / "checkpoint")
    export_voice(checkpoint, folder, name="reference", licence="Apache-2.0", provenance="Random weights, for tests.")
    return folder

@pytest.fixture(scope="session")
def midi_folder():
    """The MIDI files whose tokens are known."""
    return DATA / "midi"
