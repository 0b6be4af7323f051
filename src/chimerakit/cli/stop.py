"""Ctrl-C and SIGTERM -> an end within two seconds, whatever the threads are doing at that moment.

The first signal is raised in the main thread: jobs stop where they are, the terminal is put in order. If a thread is stuck
(in a disk that does not answer, say) the process leaves all the same after `_PATIENCE`, and a second signal kills it. That
harms no child: a merge can be killed at any moment and goes on with the next call.
"""

import os
import signal
import sys
import threading
from types import FrameType

GO_ON = "stopped; run the same command again to go on"
_PATIENCE = 1.5
"""Seconds."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StoppedError(SystemExit):
    """The user, or the machine that is being shut down, wants this process to end; the code is 128 + the signal."""


def stop_on_signals() -> None:
    """Make SIGINT and SIGTERM raise StoppedError in the main thread, which must be the caller."""
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # by a shell, for what it runs in the background
            signal.signal(number, _stop)


def _stop(number: int, _: FrameType | None) -> None:
    for each in _SIGNALS:
        if signal.getsignal(each) is _stop:
            signal.signal(each, signal.SIG_DFL)
    code = 128 + number
    # The second does not print: nobody may be reading, and then printing waits.
    for last in (threading.Timer(_PATIENCE, _leave, [code]), threading.Timer(1.2 * _PATIENCE, os._exit, [code])):
        last.daemon = True
        last.start()
    raise StoppedError(code)


def _leave(code: int) -> None:
    try:
        print(GO_ON, file=sys.stderr, flush=True)
    finally:
        os._exit(code)
