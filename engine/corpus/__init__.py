"""A folder of songs into a folder of music, with a manifest of what was made: on one machine or on many.

``make_corpus`` does it, to a ``Making`` by a ``Machine``, and says in a ``Summary`` what it came to.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from notewave.corpus.corpus import Summary, make_corpus
    from notewave.corpus.settings import Machine, Making

__all__ = ["Machine", "Making", "Summary", "make_corpus"]
_HOMES = {"Machine": "settings", "Making": "settings", "Summary": "corpus", "make_corpus": "corpus"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'notewave.corpus' has no attribute {name!r}")
    return getattr(import_module(f"notewave.corpus.{_HOMES[name]}"), name)
