"""Fuzzing of whatever is read of untrusted files: ``make fuzz``, or ``python tests/fuzz.py --help``.

Each target (``fuzz_targets``) takes bytes and must end well, or in an error of its family, in bounded time and memory.
Whatever else it does is a finding: the input and the traceback are written, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

from fuzz_campaign import Campaign, Tally
from fuzz_targets import PLANTED, TARGETS

OUT = Path("build") / "fuzz"
REPORT = 60.0  # seconds between two lines of a target


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 1 where something was found."""
    options = _parse(arguments)
    names = options.target or list(TARGETS)
    if options.input:
        return _replay(names, options.input, options.out)
    print(f"seed {options.seed}: {', '.join(names)}, {options.minutes:g} min", flush=True)
    campaigns = [Campaign(name, options.out, seed=options.seed) for name in names]
    with ThreadPoolExecutor(len(campaigns)) as pool:
        running = [pool.submit(campaign.run, seconds=options.minutes * 60) for campaign in campaigns]
        _report(campaigns, running)
    failed = [(campaign, job.exception()) for campaign, job in zip(campaigns, running, strict=True) if job.exception()]
    for campaign, error in failed:
        print(f"{campaign.name}: {error}", file=sys.stderr)
    findings = [finding for campaign in campaigns for finding in campaign.tally.findings]
    for finding in findings:
        print(f"{finding.path}: {finding.kind}, {len(finding.content)} bytes: {_last_line(finding.text)}")
    return 1 if findings or failed else 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long; targets run side by side (10)")
    names = f"one of {', '.join(TARGETS)}; may be said again (all)"
    parser.add_argument("--target", action="append", choices=[*TARGETS, *PLANTED], metavar="TARGET", help=names)
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the inputs (the time)")
    parser.add_argument("--out", type=Path, default=OUT, help=f"folder for what is found ({OUT})")
    parser.add_argument("--input", type=Path, nargs="+", help="run these inputs again instead, on one target")
    options = parser.parse_args(arguments)
    if options.input and len(options.target or ()) != 1:
        parser.error("--input needs one --target")
    return options


def _replay(names: Sequence[str], paths: Sequence[Path], out: Path) -> int:
    found = 0
    for path in paths:
        outcome = Campaign(names[0], out).replay(path.read_bytes())
        found += bool(outcome.finding)
        print(f"{path}: {outcome.finding or outcome.ending}\n{outcome.text}".rstrip())
    return 1 if found else 0


def _report(campaigns: Sequence[Campaign], running: Sequence[Future[Tally]]) -> None:
    """A line a minute for each target, and one when all are done."""
    begin, pending = time.monotonic(), set(running)
    while pending:
        _, pending = wait(running, timeout=REPORT)
        for campaign in campaigns:
            print(f"{time.monotonic() - begin:5.0f} s  {campaign.name}: {campaign.tally}", flush=True)


def _last_line(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "")[:200]


if __name__ == "__main__":
    sys.exit(main())
