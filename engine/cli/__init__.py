"""The ``notewave`` command: parse, load, run, report. Progress is shown here and nowhere else."""

from __future__ import annotations

import signal
from collections.abc import Sequence

from notewave.cli.signals import ending_on_signals
from notewave.cli.streams import complain, logged, standard_streams
from notewave.errors import NotewaveError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is 0 for success, 1 for an error that is explained on stderr.

    It is 130 for Ctrl-C, 143 where the command was told to end (SIGTERM), 129 where its terminal went away (SIGHUP).
    """
    with standard_streams(), ending_on_signals(for_good=arguments is None) as ending:
        try:
            code = _run(arguments)
            ending.is_over = True
        except (Exception, KeyboardInterrupt) as error:
            ending.is_over = True
            if ending.given or isinstance(error, KeyboardInterrupt):  # an import may have made another error of it
                complain("stopped; nothing was left half-written.")
                return 128 + (ending.given or [signal.SIGINT])[0]
            if not isinstance(error, NotewaveError):
                raise
            complain(error)
            return 1
    return code


def _run(arguments: Sequence[str] | None) -> int:
    from notewave.cli.grammar import installed, make_parser  # takes a while, in which it may be ended too

    options = make_parser().parse_args(arguments)
    with logged(options.verbose), installed(options.extras):
        return options.run(options) or 0
