"""Voices and files that several test modules share."""

import dataclasses
import shutil
from pathlib import Path

import pytest

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def midi_folder() -> Path:
    """The MIDI files whose tokens are known."""
    return DATA / "midi"


@pytest.fixture(scope="session")
def reference_voice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference checkpoint exported as a float32 voice, without a vocoder."""
    from notewave.export.convert import export_checkpoint

    folder = tmp_path_factory.mktemp("voices") / "reference"
    return export_checkpoint(DATA / "reference" / "checkpoint", folder).folder


@pytest.fixture(scope="session")
def vocoded_voice(reference_voice: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference voice with a small random vocoder."""
    from notewave.export.graphs.vocoder import export_vocoder_onnx
    from notewave.export.vocoders import Tonewheel
    from notewave.inputs import FileRecord
    from notewave.voice.folder import Voice

    folder = Path(shutil.copytree(reference_voice, tmp_path_factory.mktemp("voices") / "vocoded"))
    vocoder = Tonewheel(width=32, blocks=1)
    export_vocoder_onnx(vocoder, folder / "vocoder.onnx")
    voice = Voice.load(reference_voice)
    files = voice.files | {"vocoder.onnx": FileRecord.of(folder / "vocoder.onnx")}
    dataclasses.replace(voice, folder=folder, vocoder=vocoder.traits, files=files).save_description()
    return folder


@pytest.fixture(scope="session")
def frames_voice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A voice of random weights that writes its mels frame by frame, with a small random vocoder."""
    from notewave.export.checkpoints.seeded import random_checkpoint
    from notewave.export.convert import export_voice
    from notewave.export.vocoders import Tonewheel

    made = random_checkpoint("tiny-frames")
    said = {"licence": "Apache-2.0", "provenance": "Random.", "schedule": made.schedule, "sampling": made.sampling}
    folder = tmp_path_factory.mktemp("voices") / "frames"
    vocoder = Tonewheel(width=32, blocks=1)
    return export_voice(made.model, folder, name="frames", prediction=made.prediction, vocoder=vocoder, **said).folder


@pytest.fixture(scope="session")
def whole_voice(vocoded_voice: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The vocoded voice as voices were once: its decoders take whole segments only."""
    from notewave.export import convert, networks
    from notewave.sound.mel import FRAMES
    from notewave.voice.contracts import contracts

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            networks,
            "contracts",
            lambda size: {name: contract.fixed({"T": FRAMES}) for name, contract in contracts(size).items()},
        )
        return convert.export_checkpoint(vocoded_voice, tmp_path_factory.mktemp("voices") / "whole").folder
