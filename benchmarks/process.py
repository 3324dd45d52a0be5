"""One render in a process of its own, started as a user starts it: ``python -m notewave.benchmarks.process``.

Reads a request as JSON from stdin; prints a line when the first audio is there, and at the end its peak memory in MiB.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

import notewave


def main() -> None:
    """Sing what is asked for.

    The request: ``voice`` and ``song``, a path or token lists, to be sung ``times`` over; ``open`` and ``sampling``,
    keyword arguments of Synthesizer and of its stream; ``whole``, or else only up to the first audio. A voice without
    a vocoder makes the first segment's spectrogram.
    """
    request = json.load(sys.stdin)
    song = request["song"]
    synthesizer = notewave.Synthesizer(request["voice"], **request["open"])
    dialect = synthesizer.voice.dialect
    tokens = notewave.tokenize(song, dialect=dialect) if isinstance(song, str) else list(map(dialect.tokens, song))
    if synthesizer.voice.vocoder is None:
        synthesizer.spectrogram(tokens[:1], **request["sampling"])
        print("first", flush=True)
    else:
        chunks = synthesizer.stream(tokens * request["times"], **request["sampling"])
        next(chunks)
        print("first", flush=True)
        if request["whole"]:
            for _ in chunks:
                pass
    print(peak_memory_mib(), flush=True)


def peak_memory_mib() -> float:
    """High-water mark of this process's resident memory."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count what the parent held when it forked
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


if __name__ == "__main__":
    main()
