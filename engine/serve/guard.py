"""Who may ask: no page of another site, nobody who names another host, nobody without the token."""

from __future__ import annotations

import re
import secrets

from starlette.requests import HTTPConnection

from notewave.serve.refusal import Refusal
from notewave.serve.settings import LOOPBACK_NAMES, Settings

_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]/@]+)(?::[0-9]{1,5})?")


class Guard:
    """Checks a request's Host, Origin and token."""

    def __init__(self, settings: Settings) -> None:
        own = f"[{settings.host}]" if ":" in settings.host else settings.host
        self._names = {*LOOPBACK_NAMES, own.lower()}
        self._token = settings.token

    def check(self, request: HTTPConnection, is_open: bool) -> None:
        """Raise Refusal for a request that may not be made. is_open: whether what it asks for needs no token."""
        host = request.headers.get("host", "").lower()
        found = _HOST.fullmatch(host)
        if self._token is None and (found is None or found[1] not in self._names):
            raise Refusal(
                403,
                "the request is for another host: whoever asks must name this server as localhost or by its own "
                "address. Open it by that, or set a token to have it under any name.",
            )
        origin = request.headers.get("origin")
        if origin is not None and origin.lower() not in (f"http://{host}", f"https://{host}"):
            raise Refusal(
                403, "the request comes from another site's page, which may not use this server. Use its own."
            )
        if self._token is not None and not is_open and not self._is_known(request, self._token):
            raise Refusal(
                401,
                "the server's token is needed, and this is not it. Send Authorization: Bearer TOKEN.",
                www_authenticate="Bearer",
            )

    def _is_known(self, request: HTTPConnection, token: str) -> bool:
        """Whether a request knows the token; a browser's WebSocket can say it in its address only."""
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer":
            given = ""
        if request.scope["type"] == "websocket" and not given:
            given = request.query_params.get("token", "")
        return secrets.compare_digest(given.strip().encode("utf-8"), token.encode("utf-8"))
