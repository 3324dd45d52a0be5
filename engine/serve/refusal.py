"""What a request is answered that is not served."""

from __future__ import annotations

from notewave.errors import ArgumentError, MidiError, NotewaveError


class Refusal(Exception):
    """A request is not served: a status of HTTP, and a sentence or two that say why."""

    def __init__(self, status: int, message: str, *, retry_s: float | None = None, **headers: str) -> None:
        """retry_s: seconds after which to try again. headers: more of the answer's, _ for -."""
        super().__init__(message)
        self.status = status
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}
        if retry_s is not None:
            self.headers["retry-after"] = str(max(1, min(round(retry_s), 3600)))


class Gone(Exception):
    """The client has gone away: nobody is to be answered."""


def refusal_of(error: NotewaveError) -> Refusal:
    """What the library raised, as an answer: the client's fault where arguments or song are not what they must be."""
    return Refusal(400 if isinstance(error, ArgumentError | MidiError) else 500, str(error))
