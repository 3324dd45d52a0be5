"""Where what was built for one GPU is kept, and what it is told apart by."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from notewave.errors import BackendError
from notewave.voice.folder import Voice

FORMAT = 2  # of plans.json and of the way graphs are rewritten; older plans are refused
HOME_VARIABLE = "NOTEWAVE_PLANS"


def plans_home() -> Path:
    """Folder of all plans: $NOTEWAVE_PLANS, or ~/.cache/notewave/plans. Raises BackendError where there is no ~."""
    if chosen := os.environ.get(HOME_VARIABLE):
        return Path(chosen)
    try:
        return Path.home() / ".cache" / "notewave" / "plans"
    except RuntimeError as error:
        raise BackendError(f"there is no folder for plans ({error}). Name one in {HOME_VARIABLE}.") from error


def graphs_digest(voice: Voice) -> str:
    """SHA-256 of all that plans are made of."""
    listing = sorted((name, record.sha256) for name, record in voice.files.items())
    return hashlib.sha256(json.dumps([FORMAT, listing]).encode()).hexdigest()
