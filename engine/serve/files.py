"""The page's files, read once: what is not among them is not served."""

from __future__ import annotations

from importlib import resources

_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_FIRST = "index.html"  # what is served as /


def page_files() -> dict[str, tuple[bytes, str]]:
    """Each file's bytes and kind, by the path that it is served under."""
    found = {}
    for file in resources.files("notewave.serve").joinpath("page").iterdir():
        kind = _KINDS.get("." + file.name.rpartition(".")[2])
        if kind is not None:
            found["/" if file.name == _FIRST else f"/page/{file.name}"] = file.read_bytes(), kind
    return found
