"""A file's events to its instruments: which event ends which note, and what was in force when it was struck.

There is one clock, and what a player would know is known: a program, pedal or volume belongs to its channel, and an
end to its channel's note, whichever tracks they stand in. Where tracks share a channel, each is taken at its own word
first: a note-off ends the notes of its own track, and of settings at one tick the track's own counts. So files whose
tracks say all of themselves are read as pretty_midi reads them, to the last bit.

Shapes: E events of a file, of all its tracks in order of time; n notes; m settings.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from notewave.song.pedal import NO_PEDAL, SUSTAIN, Instrument, Pedal
from notewave.song.smf import BEND, CONTROL, DRUM_PART, NOTE_OFF, NOTE_ON, PROGRAM, Clock, Events

DRUMS = 9  # the channel whose notes are drums unless it is said otherwise, counted from 0
BANK, VOLUME, SOUND_OFF = 0, 7, 120  # controllers
DRUM_BANKS = (120, 126, 127)  # of General MIDI 2 and XG; in GS 126 and 127 are other sounds
NOTES_OFF = (SOUND_OFF, 123, 124, 125, 126, 127)  # all notes off, and the modes that imply it
NEVER = np.iinfo(np.int64).max  # a tick beyond all
_SMALL = 1 << 16  # numbers up to here may index arrays

_Floats = NDArray[np.float64]
_Ints = NDArray[np.int64]
_Bools = NDArray[np.bool_]


def instruments(events: Events, clock: Clock) -> tuple[list[Instrument], int]:
    """The instruments of a file, and how many of their notes nothing ended but the end of their track.

    An instrument is what one program of a channel plays in one track.
    """
    score = _Score(events)
    notes, unended = _notes(score)
    instrument = score.instrument(notes.named, notes.struck)
    by_instrument = np.lexsort((notes.ended, instrument))
    notes, instrument = notes.rows(by_instrument), instrument[by_instrument]
    keys, starts = np.unique(instrument, return_index=True)
    if not len(keys):
        return [], 0
    columns = [clock(events.tick[notes.struck].astype(np.float64)), clock(notes.end_tick.astype(np.float64))]
    columns += [
        x.astype(np.float64) for x in (events.first[notes.struck], events.second[notes.struck], instrument & 127)
    ]
    table = np.column_stack([*columns, score.is_drum[notes.struck]])
    pedals = _pedals(score, clock, keys, notes.ended[starts], score.channel[notes.struck[starts]])
    return [Instrument(*one) for one in zip(np.split(table, starts[1:]), pedals, strict=True)], unended


@dataclass(frozen=True, eq=False)
class _Notes:
    """Notes [n] as rows of the event table."""

    struck: _Ints  # the event that strikes it
    ended: _Ints  # the event that ends it, E for none
    end_tick: _Ints
    named: _Ints  # the event at which the channel's program is the note's: its end, as in pretty_midi, or its strike

    def rows(self, chosen: _Ints | _Bools) -> _Notes:
        """Those notes only."""
        return _Notes(*(column[chosen] for column in vars(self).values()))


class _Score:
    """Events, and what is in force at each of them."""

    def __init__(self, events: Events) -> None:
        self.events = events
        self.channel = _small(events.channel)
        self.part = _small(events.track * (int(self.channel.max(initial=0)) + 1) + self.channel)
        channels, parts = (np.count_nonzero(np.bincount(x)) for x in (self.channel, self.part))
        self.is_shared = parts > channels  # some channel, by several tracks
        self._is_control = events.kind == CONTROL

    def instrument(self, row: _Ints, struck: _Ints) -> _Ints:
        """A number for the instrument that has the program in force at an event, of the part of another."""
        return (self.part[struck] << 1 | self.is_drum[struck]) << 7 | self.program[row]

    def control(self, *numbers: int) -> _Bools:
        """Which events [E] are of these controllers."""
        return self._is_control & np.logical_or.reduce([self.events.first == number for number in numbers])

    @cached_property
    def program(self) -> _Ints:
        """The program [E] in force at each event; of drums, which it only puts in order, their part's own."""
        own = self._in_force_of_part(self.events.kind == PROGRAM)
        program: _Ints = _value(np.where(self.is_drum, own, self._program_set), self.events.first, 0)
        return program

    @cached_property
    def _program_set(self) -> _Ints:
        return self.in_force(self.events.kind == PROGRAM)

    @cached_property
    def is_drum(self) -> _Bools:
        """Whether each event's channel plays drums then: [E]."""
        events = self.events
        by_default = events.channel & 15 == DRUMS
        said = events.kind == DRUM_PART
        drums: _Bools = by_default
        if said.any():
            drums = _value(self.in_force(said), events.first != 0, by_default)
        bank = self.control(BANK)
        if not events.is_gs and np.isin(events.second[bank], DRUM_BANKS).any():
            of_drums = np.isin(_value(self.in_force(bank), events.second, 0), DRUM_BANKS)
            drums = drums | _value(self._program_set, of_drums, False)  # a bank is taken when a program is
        return drums

    def silent(self, notes: _Notes) -> _Bools:
        """Which notes [n] the volume of their channel is zero for as long as they last."""
        events, is_set = self.events, self.control(VOLUME)
        if events.second[is_set].all():
            return np.zeros(len(notes.struck), np.bool_)
        is_zero = _value(self.in_force(is_set)[notes.struck], events.second, 127) == 0
        louder = np.flatnonzero(is_set & (events.second > 0))
        rise = self.next_tick(notes, louder, self.channel[louder], self.channel[notes.struck])
        silent: _Bools = is_zero & (rise >= notes.end_tick)
        return silent

    def next_tick(self, notes: _Notes, row: _Ints, key: _Ints, of_note: _Ints) -> _Ints:
        """The tick of the next of some events [m] after each note's strike that has the note's key; beyond all if none.

        key [m] is that of each event, of_note [n] that of each note.
        """
        tick = np.concatenate([self.events.tick[row], self.events.tick[notes.struck]])
        is_note = np.arange(len(tick)) >= len(row)
        keys = np.concatenate([key, of_note])
        order = np.lexsort((is_note, tick, keys))  # events before the notes of their tick: they are no next ones
        place = np.where(is_note[order], len(order), np.arange(len(order)))
        following = np.append(np.minimum.accumulate(place[::-1])[::-1], len(order))
        after = np.append(order, -1)[following[:-1]]
        found = np.where((after >= 0) & (keys[after] == keys[order]), tick[after], NEVER)
        result = np.empty(len(tick), np.int64)
        result[order] = found
        return result[len(row) :]

    def in_force(self, is_set: _Bools) -> _Ints:
        """The event [E] that last set something at each event, -1 for none; is_set [E] are those that set it.

        That is the last of the event's own part, or, set at a later tick, of its channel in whatever track; there what
        other tracks set at the event's tick is set before it.
        """
        own = self._in_force_of_part(is_set)
        if not self.is_shared:
            return own
        tick, part = self.events.tick, self.part
        order = np.argsort(self.channel, kind="stable")
        last = np.append(_last(is_set, self.channel, order), -1)
        is_first = (np.diff(self.channel[order], prepend=-1) != 0) | (np.diff(tick[order], prepend=-1) != 0)
        starts = np.flatnonzero(is_first)
        group = np.cumsum(is_first) - 1  # of events of one channel at one tick
        by_end = last[np.append(starts[1:], len(order))[group] - 1]
        before = starts - 1  # the last place of the group before, if that is of the channel
        before[self.channel[order[before]] != self.channel[order[starts]]] = -1
        by_start = last[before][group]
        is_own_to_come = (by_end > order) & (part[by_end] == part[order])
        of_channel = np.empty_like(own)
        of_channel[order] = np.where(is_own_to_come, by_start, by_end)
        is_own = (own >= 0) & ((of_channel < 0) | (tick[own] >= tick[of_channel]))
        return np.where(is_own, own, of_channel)

    def _in_force_of_part(self, is_set: _Bools) -> _Ints:
        """``in_force`` where other tracks say nothing."""
        own = np.empty(len(is_set), np.int64)
        order = np.argsort(self.part, kind="stable")  # a part's events stay in order of time
        own[order] = _last(is_set, self.part, order)
        return own


def _value(row: _Ints, value: NDArray[Any], default: Any) -> NDArray[Any]:
    """The values at rows, and a default where there is none (-1)."""
    return np.where(row >= 0, value[row], default)


def _small(numbers: _Ints) -> _Ints:
    """Numbers that name things, small enough to index arrays; anew if need be."""
    if numbers.max(initial=0) < _SMALL:
        return numbers
    return np.unique(numbers, return_inverse=True)[1].reshape(-1)


def _last(is_set: _Bools, group: _Ints, order: _Ints) -> _Ints:
    """The last event set before or at each event, in an order [E] group by group; -1 where its group has none."""
    set_there = is_set[order]
    anew = set_there | (np.diff(group[order], prepend=-1) != 0)
    last = np.maximum.accumulate(np.where(anew, np.arange(len(order)), 0))
    return np.where(set_there[last], order[last], -1) if len(order) else order


def _notes(score: _Score) -> tuple[_Notes, int]:
    """The notes that sound, and how many of them only the end of their track ends."""
    events = score.events
    struck, ended, is_void, stray = _pairs(events, score.part)
    struck_tick, is_drum, is_ended = events.tick[struck], score.is_drum[struck], ended >= 0
    # When a note ends that nothing ends: a stroke is its onset, as is a note of no length.
    alone = np.where(is_drum | is_void, struck_tick, events.track_end[events.track[struck]])
    notes = _Notes(
        struck,
        np.where(is_ended, ended, len(events.tick)),
        np.where(is_ended, events.tick[ended], alone),
        np.where(is_ended, ended, struck),
    )
    cut = _cut_ticks(score, notes, stray)
    is_open = ~(is_ended | is_void | is_drum)
    is_cut = ~is_drum & (cut < np.where(is_open, NEVER, notes.end_tick))
    notes = _Notes(
        struck,
        np.where(is_cut, events.tick.searchsorted(cut), notes.ended),
        np.where(is_cut, cut, notes.end_tick),
        np.where(is_cut, struck, notes.named),
    )
    sounds = (is_drum | (notes.end_tick > struck_tick)) & ~score.silent(notes)
    return notes.rows(sounds), int(np.count_nonzero(is_open & ~is_cut & sounds))


def _cut_ticks(score: _Score, notes: _Notes, stray: _Ints) -> _Ints:
    """When each note [n] is ended by something else than a note-off of its own track; beyond all ticks if nothing is.

    That is a stray [m], a note-off that ended nothing in its track, or whatever ends all notes of a channel.
    """
    events, channel = score.events, score.channel
    cut = np.full(len(notes.struck), NEVER)
    if score.is_shared and len(stray):
        keys = (channel[row] << 7 | events.first[row] for row in (stray, notes.struck))
        cut = score.next_tick(notes, stray, *keys)
    if len(silencing := np.flatnonzero(score.control(*NOTES_OFF))):
        others = score.next_tick(notes, silencing, channel[silencing], channel[notes.struck])
        cut = np.minimum(cut, others)
    return cut


def _pairs(events: Events, part: _Ints) -> tuple[_Ints, _Ints, _Bools, _Ints]:
    """Which event of its own part ends each note: strikes [n], their ends [n], -1 for none, which are void; and strays.

    A note-off ends every open note of its part and pitch, save those struck at its own tick: these it leaves open
    if it ended another; if it did not, they are void. A stray [m] is a note-off that does neither.
    """
    row = np.flatnonzero((events.kind == NOTE_ON) | (events.kind == NOTE_OFF))
    key = part[row] << 7 | events.first[row]
    order = np.argsort(key, kind="stable")  # a key's events stay in order of time
    row, key = np.append(row[order], -1), np.append(key[order], -1)  # the last stands for a note-off that is nobody's
    tick = np.append(events.tick[row[:-1]], -1)
    is_on = np.append((events.kind[row[:-1]] == NOTE_ON) & (events.second[row[:-1]] > 0), False)
    on, off = np.flatnonzero(is_on), np.flatnonzero(~is_on)

    following = off.searchsorted(on)  # of each note-on: which note-off comes next
    has_off = key[off[following]] == key[on]
    same_tick = has_off & (tick[off[following]] == tick[on])

    # Of each note-off: whether notes were struck since the last one, before its tick and at it.
    before, at_it = np.zeros((2, len(off)), np.bool_)
    before[following[has_off & ~same_tick]] = True
    at_it[following[same_tick]] = True
    later = (np.diff(key[off], prepend=-1) == 0) & (np.diff(tick[off], prepend=-1) > 0)  # than its key's last note-off
    # One leaves notes open if some were struck at it, and it ends others: from before, or that the last one left open.
    depends = at_it & ~before & later
    decided = np.maximum.accumulate(np.where(depends, 0, np.arange(len(off))))
    leaves = (at_it & before)[decided]

    left = same_tick & leaves[following]
    following = following + left
    has_off &= key[off[following]] == key[on]
    is_ended = has_off & (~same_tick | left & later[following])
    ended = np.where(is_ended, row[off[following]], -1)
    is_used = before | at_it
    is_used[following[is_ended]] = True
    return row[on], ended, has_off & ~is_ended, row[off[:-1][~is_used[:-1]]]


def _pedals(score: _Score, clock: Clock, keys: _Ints, born: _Ints, channel: _Ints) -> list[Pedal]:
    """The sustain pedal of each instrument.

    keys are the instruments' in rising order, born the events of their first notes' ends, channel theirs. Where all
    movements of a channel stand in an instrument's own track, they are shared out by pretty_midi's rule: a control or
    bend is its instrument's; before that is born it is its part's, and whatever is born later in a part that has such
    strays shares them, and those to come, in the place of controls of its own. Else they are its channel's.
    """
    events, part = score.events, score.part
    control = np.flatnonzero((events.kind == CONTROL) | (events.kind == BEND))
    instrument = score.instrument(control, control)
    place = np.minimum(keys.searchsorted(instrument), len(keys) - 1)
    is_born = (keys[place] == instrument) & (born[place] < control)
    stray = control[~is_born]
    parts = int(part.max()) + 1
    first_stray = np.full(parts, len(part))
    np.minimum.at(first_stray, part[stray], stray)

    of_part = keys >> 8
    owner = np.where(born > first_stray[of_part], -1 - of_part, np.arange(len(keys)))  # parts count down from -1
    owner_of_control = np.where(is_born, owner[place], -1 - part[control])
    is_pedal = (events.kind[control] == CONTROL) & (events.first[control] == SUSTAIN)
    moves, owner_of_move = control[is_pedal], owner_of_control[is_pedal]
    if score.is_shared:  # channels go on counting down from the last part
        by_channel = -1 - parts - score.channel
        channels = int(score.channel.max()) + 1
        first_part, last_part = np.full(channels, parts), np.full(channels, -1)
        np.minimum.at(first_part, score.channel[moves], part[moves])
        np.maximum.at(last_part, score.channel[moves], part[moves])
        others = (np.minimum(first_part[channel], of_part) != of_part) | (last_part[channel] > of_part)
        owner = np.where(others, -1 - parts - channel, owner)
        moves, owner_of_move = np.tile(moves, 2), np.concatenate([owner_of_move, by_channel[moves]])
    order = np.argsort(owner_of_move, kind="stable")
    moves, owner_of_move = moves[order], owner_of_move[order]
    time_s, value = clock(events.tick[moves].astype(np.float64)), events.second[moves].astype(np.float64)
    cut = np.flatnonzero(score.control(SOUND_OFF))
    cut_s = {at: clock(events.tick[cut[score.channel[cut] == at]].astype(np.float64)) for at in set(channel.tolist())}
    made: dict[int, Pedal] = {}
    for one, at in zip(owner.tolist(), channel.tolist(), strict=True):
        if one not in made:
            first, last = owner_of_move.searchsorted([one, one + 1])
            made[one] = Pedal(time_s[first:last], value[first:last], cut_s[at]) if first < last else NO_PEDAL
    return [made[one] for one in owner.tolist()]
