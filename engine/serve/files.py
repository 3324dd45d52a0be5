"""The page's files, read once: what is not among them is not served."""

from __future__ import annotations

from importlib import resources

from starlette.responses import Response

_KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_FIRST = "index.html"  # what is served as /


def page_files() -> dict[str, Response]:
    """The answer with each file, by the path that it is served under."""
    found = {}
    for file in resources.files("notewave.serve").joinpath("page").iterdir():
        kind = _KINDS.get("." + file.name.rpartition(".")[2])
        if kind is not None:
            answer = Response(file.read_bytes(), headers={"cache-control": "no-cache"}, media_type=kind)
            found["/" if file.name == _FIRST else f"/page/{file.name}"] = answer
    return found
