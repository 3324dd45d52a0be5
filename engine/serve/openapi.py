"""The interface described as OpenAPI has it, from the table that checks requests."""

from __future__ import annotations

from typing import Any

import notewave
from notewave.serve.encode import FORMATS
from notewave.serve.query import Parameter, Table
from notewave.serve.settings import Settings

_JSON, _MIDI = "application/json", "audio/midi"
_GETS = {
    "/health": ("Whether the server takes work", _JSON),
    "/voices": ("Voices, samplers, General MIDI's programs, and limits", _JSON),
    "/metrics": ("What the server counts, as Prometheus reads it", "text/plain"),
    "/openapi.json": ("This description", _JSON),
}
_POSTS = {
    "/notes": ("A song's parts and notes, edited", (_JSON,)),
    "/midi": ("A song edited, as a MIDI file", (_MIDI,)),
    "/render": ("A song's sound, sent as it is made", tuple(dict.fromkeys(form.kind for form in FORMATS.values()))),
    "/stems": ("Each part's sound alone, and the mix: a ZIP archive of files", ("application/zip",)),
}
_REFUSALS = {
    "400": "An option or the song is not what it must be",
    "401": "The token is missing or wrong",
    "403": "The request comes from another site's page, or names another host",
    "408": "The body came too slowly",
    "413": "The file is too large, or the song too long",
    "415": "The body is no plain MIDI file",
    "503": "The server is full or ends; Retry-After says when to try again",
}
_HEADERS = {
    "X-Notewave-Seconds": ("number", "length of the sound"),
    "X-Notewave-Rate": ("integer", "Hz"),
    "X-Notewave-Voice": ("string", "which sang"),
    "X-Notewave-Seed": ("integer", "with which it did"),
}


def description(table: Table, settings: Settings) -> dict[str, Any]:
    """The whole interface: OpenAPI 3.1."""
    paths: dict[str, Any] = {path: {"get": _get(*told)} for path, told in _GETS.items()}
    for path, (summary, kinds) in _POSTS.items():
        paths[path] = {"post": _post(path, summary, kinds, table.routes[path], settings)}
    paths["/live"] = {"get": _live(table.routes["/live"])}
    whole: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "notewave", "version": notewave.__version__, "description": "MIDI to music."},
        "paths": paths,
        "components": {
            "schemas": {"Error": _object({"error": {"type": "string", "description": "fact, reason and cure"}})},
            "responses": {status: _refused(says) for status, says in _REFUSALS.items()},
        },
    }
    if settings.token is not None:
        whole["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        whole["security"] = [{"token": []}]
        paths["/health"]["get"]["security"] = []
    return whole


def _get(summary: str, kind: str) -> dict[str, Any]:
    return {"summary": summary, "responses": {"200": {"description": summary, "content": {kind: {}}}, **_refusals()}}


def _post(
    path: str, summary: str, kinds: tuple[str, ...], parameters: dict[str, Parameter], settings: Settings
) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": summary, "content": {kind: {} for kind in kinds}}
    if "seed" in parameters:
        answer["headers"] = {
            name: {"description": says, "schema": {"type": kind}} for name, (kind, says) in _HEADERS.items()
        }
    body = f"a MIDI file of {settings.max_bytes} bytes at most, of a song of {settings.max_seconds:g} s at most"
    return {
        "summary": summary,
        "operationId": path.removeprefix("/"),
        "parameters": _parameters(parameters),
        "requestBody": {"required": True, "description": body, "content": {_MIDI: {}}},
        "responses": {"200": answer, **_refusals()},
    }


def _live(parameters: dict[str, Parameter]) -> dict[str, Any]:
    says = (
        'Play a voice, by WebSocket. The client sends JSON: {"do": "note_on", "pitch": 60, "velocity": 90, '
        '"program": 0, "drum": false}, note_off, {"do": "pedal", "down": true} or all_off. The server sends JSON '
        'first, {"sample_rate", "hop_samples", "latency_s"}, then hops of sound, 16 bits a sample; {"error"} for a '
        "message that says nothing."
    )
    answers = {"101": {"description": "It is played"}, **_refusals()}
    return {"summary": "Play live", "description": says, "parameters": _parameters(parameters), "responses": answers}


def _parameters(parameters: dict[str, Parameter]) -> list[dict[str, Any]]:
    described = []
    for name, one in parameters.items():
        schema = one.kind.schema
        if one.repeats:
            schema = {"type": "array", "items": schema}
        if one.default is not None:
            schema = {**schema, "default": one.default}
        described.append({"name": name, "in": "query", "description": one.says, "schema": schema})
    return described


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _refused(says: str) -> dict[str, Any]:
    return {"description": says, "content": {_JSON: {"schema": {"$ref": "#/components/schemas/Error"}}}}


def _refusals() -> dict[str, Any]:
    return {status: {"$ref": f"#/components/responses/{status}"} for status in _REFUSALS}
