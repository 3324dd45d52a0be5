"""What ``from_pretrained`` is given, to a voice's folder: checkpoints are exported once, and kept.

A kept voice lies in a folder of its own, named by a digest of all that it was made of. It appears whole, is never
changed or replaced, and may be removed at any time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from notewave import __version__
from notewave.checks import quoted, shown
from notewave.errors import OutputError, VoiceError
from notewave.export.hub import check_sizes, reaching
from notewave.inputs import read_regular
from notewave.pipeline.refusal import installed
from notewave.voice.folder import Voice
from notewave.voice.library import DESCRIPTION, bundled_voices, voices

CACHE_VARIABLE = "NOTEWAVE_CACHE"
FORMAT = 1  # of what is kept
SCHEDULER = "scheduler_config.json"  # of the checkpoint, beside its voice
MAX_SCHEDULER_BYTES = 1 << 20
MAX_FILES = 10_000  # of a checkpoint; T5X ones have a folder for each array
COMMIT = re.compile(r"[0-9a-f]{40}")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_TAKEN = {errno.ENOTEMPTY, errno.EEXIST}


@dataclass(frozen=True)
class Download:
    """How the Hugging Face hub is asked for a repository; as in diffusers' ``from_pretrained``."""

    revision: str | None = None  # a branch, tag or commit
    cache_dir: str | os.PathLike[str] | None = None  # where the hub's client keeps what it fetches
    local_files_only: bool = False
    token: str | bool | None = None


@dataclass(frozen=True)
class Source:
    """A voice, and what the checkpoint that it was made of says of its scheduler, where that is known."""

    folder: Path
    scheduler: dict[str, Any] | None = None


def find_source(given: str | os.PathLike[str], stored: str, download: Download) -> Source:
    """The voice that a name, a folder or a hub id stands for; a checkpoint's is exported in a stored precision.

    Raises VoiceError where there is none, or nothing that can be used; OutputError where it cannot be kept; ToolError
    for a package that is missing.
    """
    try:
        folder = Path(given)
        is_folder, is_voice = folder.is_dir(), (folder / DESCRIPTION).is_file()
    except (OSError, TypeError, ValueError) as error:  # a name too long, a zero byte, no path at all
        raise VoiceError(f"there is no voice or checkpoint at {quoted(given)}: {error}. Check the path.") from error
    name = str(given)
    if name in bundled_voices() or (not is_voice and name in voices()):  # as ``Voice.load`` finds them
        return Source(voices()[name])
    if is_voice:
        return Source(folder.absolute())
    with installed():
        if is_folder:
            return _exported_folder(folder.resolve(), stored)
        if not HUB_ID.fullmatch(name):
            raise VoiceError(
                f"there is no voice or checkpoint at {quoted(given)}: no folder is there, no voice has that name, and "
                "it is no hub id like owner/name. Check the path."
            )
        return _exported_hub(name, stored, download)


def cache_folder() -> Path:
    """Folder of exported voices: that of NOTEWAVE_CACHE, or where the system keeps what can be made again."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen)
    import platformdirs

    return platformdirs.user_cache_path("notewave", appauthor=False) / "exported"


def _exported_folder(folder: Path, stored: str) -> Source:
    """The voice of a checkpoint in a folder, as the folder is now."""
    before = _listing(folder)

    def make(out: Path) -> None:
        _export(folder, out, stored)
        if _listing(folder) != before:
            raise VoiceError(f"{shown(folder)} changed while it was exported. Try again when it is whole.")

    return _kept(folder.name, [str(folder), before, stored], make)


def _exported_hub(repository: str, stored: str, download: Download) -> Source:
    """The voice of a checkpoint on the Hugging Face hub, at the commit that its revision is now."""
    commit, sizes = _commit(repository, download)

    def make(out: Path) -> None:
        folder = _fetch(repository, sizes, download)
        if folder.name != commit:
            raise VoiceError(f"{quoted(repository)} changed on the hub while it was fetched. Try again.")
        voice = _export(folder, out, stored)
        provenance = f"Exported from the checkpoint {repository} of the Hugging Face hub, at {commit}."
        dataclasses.replace(voice, provenance=provenance).save_description()

    return _kept(repository.rpartition("/")[2], [repository, commit, stored], make)


def _kept(name: str, made_of: list[Any], make: Callable[[Path], None]) -> Source:
    """The voice made of these things: as it is kept, or made now.

    make: ``_export``s into a folder that is not there yet. Of several processes that make the voice at once, the first
    one's is kept, and used by all.
    """
    key = hashlib.sha256(json.dumps([FORMAT, __version__, made_of]).encode()).hexdigest()[:32]
    place = cache_folder() / key
    voice = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip(".-")[:100] or "checkpoint"
    if not place.is_dir():
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{key}-", dir=place.parent, ignore_cleanup_errors=True) as new:
                make(Path(new, "kept", voice))
                _place(Path(new, "kept"), place)
        except OSError as error:
            raise OutputError(
                f"the exported voice cannot be kept in {shown(place.parent)}: {error.strerror or error}. Make room, or "
                f"name another folder in {CACHE_VARIABLE}."
            ) from error
    return Source(place / voice, _read_scheduler(place / SCHEDULER))


def _place(new: Path, place: Path) -> None:
    """Put a folder where none is; one that came there meanwhile is as good, and stays. Raises OSError."""
    try:
        new.rename(place)
    except OSError as error:
        if error.errno not in _TAKEN:
            raise


def _export(checkpoint: Path, out: Path, stored: str) -> Voice:
    """Make a voice of a checkpoint, and copy the settings of its scheduler beside the voice."""
    from notewave.export.convert import export_checkpoint

    voice = export_checkpoint(checkpoint, out, precision=stored)
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # T5X checkpoints have none
        content = read_regular(checkpoint / "scheduler" / SCHEDULER, MAX_SCHEDULER_BYTES)
        out.with_name(SCHEDULER).write_bytes(content)
    return voice


def _read_scheduler(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(read_regular(path, MAX_SCHEDULER_BYTES))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise VoiceError(f"{shown(path)} cannot be read: {error}. Remove its folder, to export anew.") from error
    return content if isinstance(content, dict) else None


def _listing(folder: Path) -> list[list[Any]]:
    """What tells one state of a folder from another: each file's name, size, times and inode. Raises VoiceError."""

    def refuse(error: OSError) -> None:
        raise error

    listing: list[list[Any]] = []
    try:
        for root, _, names in os.walk(folder, onerror=refuse, followlinks=True):  # a part may be a link
            for path in (Path(root, name) for name in names):
                facts = path.stat()
                times = facts.st_mtime_ns, facts.st_ctime_ns  # a copied file may have another's, but not both
                listing.append([os.fsencode(path.relative_to(folder)).hex(), facts.st_size, *times, facts.st_ino])
                if len(listing) > MAX_FILES:
                    raise VoiceError(
                        f"{shown(folder)} has over {MAX_FILES} files: it is no checkpoint. Check the path."
                    )
    except OSError as error:
        raise VoiceError(f"{shown(folder)} cannot be read: {error}. Check the checkpoint.") from error
    return sorted(listing)


def _commit(repository: str, download: Download) -> tuple[str, dict[str, Any] | None]:
    """The commit that a revision is, and the sizes of its files where the hub was asked. Raises VoiceError."""
    if download.revision and COMMIT.fullmatch(download.revision):
        return download.revision, None
    if download.local_files_only:
        return _fetched(repository, download, True, ["*/*.json"]).name, None
    try:
        return _ask(repository, download)
    except VoiceError:
        with contextlib.suppress(VoiceError):  # what was fetched before will do
            return _fetched(repository, download, True, ["*/*.json"]).name, None
        raise


def _fetch(repository: str, sizes: dict[str, Any] | None, download: Download) -> Path:
    """The folder, which a commit names, of what is needed: safetensors where there are, or else pickles.

    sizes: of the repository's files, where the hub was asked before. Raises VoiceError.
    """
    from notewave.export.checkpoints.repository import CONFIGS, FILES, PARTS, STEM, VOCODER

    if sizes is None and not download.local_files_only:
        with contextlib.suppress(VoiceError):  # what was fetched before will do
            sizes = _ask(repository, download)[1]
    if sizes is not None:
        if DESCRIPTION in sizes:
            raise VoiceError(
                f"{quoted(repository)} is a voice, no checkpoint. Say `notewave voices add {repository}`, then give "
                "its name."
            )
        check_sizes(repository, {name: size for name, size in sizes.items() if name in FILES})
    cached = sizes is None
    names = [*CONFIGS, VOCODER, *(f"{part}/{STEM}.safetensors" for part in PARTS)]
    folder = _fetched(repository, download, cached, names)
    pickled = [part for part in PARTS if not (folder / part / f"{STEM}.safetensors").is_file()]
    return _fetched(repository, download, cached, [f"{part}/{STEM}.bin" for part in pickled]) if pickled else folder


def _ask(repository: str, download: Download) -> tuple[str, dict[str, Any]]:
    with reaching(repository):
        from huggingface_hub import HfApi

        info = HfApi(token=download.token).model_info(repository, revision=download.revision, files_metadata=True)
        return str(info.sha), {file.rfilename: file.size for file in info.siblings or ()}


def _fetched(repository: str, download: Download, cached: bool, names: list[str]) -> Path:
    with reaching(repository):
        from huggingface_hub import snapshot_download

        folder = snapshot_download(
            repository,
            revision=download.revision,
            cache_dir=None if download.cache_dir is None else Path(download.cache_dir),
            local_files_only=cached,
            token=download.token,
            allow_patterns=names,
        )
        return Path(folder)
