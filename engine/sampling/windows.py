"""Live play's windows: like segments, but each begins a little after the one before.

A window's frames, in their order: those that were played, which are given; ``hop`` whose sound comes next; ``right``
that would follow if nothing happened; the rest of a segment's, which nobody takes. A decoder may be given those before
the rest alone, which is half the work and sounds no worse (benchmarks/NOTES.md, "Half a window").

Half of the last played frame's analysis window lies in the sound to come, so that frame is not given but made once
more: without, each attack at a hop's beginning would be half an attack. Played frames are told to the denoising loop as
their clean mel, at every step (Lugmayr et al. 2022, "RePaint"): the networks see them with the step's noise, as any
frames. To see them as they are makes networks copy their own errors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from notewave.checks import is_integer, quoted
from notewave.errors import ArgumentError
from notewave.sound.mel import FRAMES
from notewave.sound.stream import VocoderTraits

REMADE = 1  # frames before the sound to come that are made once more
LEAD = 1  # frames before the hop whose sound is made once more, for whoever filters or fades it
BACK = 96  # frames before the hop, unless said otherwise: what sounds is told by a context that ends so recently
AHEAD = 6  # frames after the hop that the vocoder sees, though its own reach may be less


@dataclass(frozen=True)
class Windows:
    """Which frames of each window are kept, the same from the first to the last. Raises ArgumentError."""

    hop: int  # frames whose sound each window adds
    back: int  # frames of a window before those
    left: int  # frames before the hop that the vocoder sees, at least LEAD
    right: int  # frames after it, whose sound is made too, should the next window come late

    def __post_init__(self) -> None:
        """Refuse windows without room for what they must hold."""
        room = FRAMES - self.right
        if not is_integer(self.hop, 1, room - self.left - REMADE):
            raise ArgumentError(
                f"hop is {quoted(self.hop)}; it must be 1 to {room - self.left - REMADE} frames of 20 ms: a window has "
                f"{FRAMES}, of which the vocoder sees {self.left} before a hop and {self.right} after it."
            )
        least, most = self.left + REMADE, room - self.hop
        if not is_integer(self.back, least, most):
            raise ArgumentError(
                f"back is {quoted(self.back)}; it must be {least} to {most} frames of 20 ms, with a hop of {self.hop}."
            )

    @classmethod
    def of(cls, traits: VocoderTraits, hop: int, back: int | None = None) -> Windows:
        """Windows for a vocoder; ``back`` frames before the hop, by default BACK or as many as there is room for."""
        left, right = max(traits.left_frames, LEAD), max(traits.right_frames, AHEAD)
        room = FRAMES - right - hop if is_integer(hop, 1, FRAMES) else 0
        return cls(hop, min(max(BACK, left + REMADE), room) if back is None else back, left, right)

    @property
    def length(self) -> int:
        """Frames of a window that are taken, given or heard; those after them may be anything."""
        return self.back + self.hop + self.right

    @property
    def heard(self) -> slice:
        """The frames of a window that the vocoder sees."""
        return slice(self.back - self.left, self.back + self.hop + self.right)

    @property
    def sounded(self) -> slice:
        """The frames, of those, whose sound is asked for: the last ones before the hop, the hop, what follows."""
        return slice(self.left - LEAD, self.left + self.hop + self.right)

    def given(self, moved: int) -> int:
        """How many frames of a window were played, that begins so many frames after the one before."""
        return max(self.back + self.hop - REMADE - moved, 0)


class Place(NamedTuple):
    """Where a window lies."""

    first: int  # number of its first frame in the song
    moved: int  # frames after the first frame of the window before, at most a window's ``length``
