"""Where voices are found by name: those that ship with the package, and those in the user's own voice folder."""

from __future__ import annotations

import os
import re
from importlib import resources
from pathlib import Path

from notewave.checks import shown
from notewave.errors import VoiceError

DESCRIPTION = "voice.json"
PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")  # of a voice in the voice folder, and of each of its files
FOLDER_VARIABLE = "NOTEWAVE_VOICES"


def bundled_voices() -> dict[str, Path]:
    """Folders of the voices that ship with the package, by name."""
    root = Path(str(resources.files("notewave"))) / "bundled" / "voices"  # in an editable install its files are links
    return {path.parent.name: path.resolve().parent for path in sorted(root.glob(f"*/{DESCRIPTION}"))}


def voices_folder() -> Path:
    """The user's voice folder, whether it is there or not: that of NOTEWAVE_VOICES, or where the system keeps data."""
    if chosen := os.environ.get(FOLDER_VARIABLE):
        return Path(chosen)
    import platformdirs

    return platformdirs.user_data_path("notewave", appauthor=False) / "voices"


def voices() -> dict[str, Path]:
    """Folders of all voices that have a name: the bundled ones, then those in the voice folder, links among them.

    A bundled voice keeps its name. What has no plain name, or no ``voice.json`` within reach, is passed over. Raises
    VoiceError when there is a voice folder that cannot be read.
    """
    root = voices_folder()
    try:
        own = {
            path.name: path for path in sorted(root.iterdir()) if PLAIN_NAME.fullmatch(path.name) and _is_voice(path)
        }
    except FileNotFoundError:
        own = {}
    except OSError as error:
        raise VoiceError(
            f"the voice folder {shown(root)} cannot be read: {error.strerror or error}. Check its permissions, or name "
            f"another in {FOLDER_VARIABLE}."
        ) from error
    bundled = bundled_voices()
    return bundled | own | bundled


def _is_voice(folder: Path) -> bool:
    try:
        return (folder / DESCRIPTION).is_file()
    except OSError:  # another's, whose folder is closed to us
        return False
