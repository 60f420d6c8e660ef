"""Signals by which schedulers end a run: SIGTERM, and SIGUSR1 as `#SBATCH --signal=USR1@120` sends it.

The first one asks the run to save and to leave. A launcher often sends several for one event, so further ones within
a second count as the same, and the second event is ignored, too: it must not cost the checkpoint that is being written.
The third ends a run that hangs. It is counted in a thread, because a process that waits in a collective operation runs
no handlers of Python.
"""

import logging
import os
import signal
import threading
import time
from types import FrameType

logger = logging.getLogger(__name__)

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))
_SAME_EVENT_SECONDS = 1.0
_LAST_EVENT = 3
_STATUS = 128 + signal.SIGTERM
_END = b"\0"  # no signal has this number


class Preemption:
    """Whether this process was asked to end. Signals are counted between `begin` and `end`."""

    def __init__(self) -> None:
        self.requested = False
        # Those of now: Lightning puts its own in their place for the time of a run.
        self._previous = {number: signal.getsignal(number) for number in SIGNALS}
        self._descriptors: tuple[int, int] | None = None
        self._previous_wakeup = -1

    def begin(self) -> None:
        """Take over the signals; only the main thread of a process can."""
        if threading.current_thread() is not threading.main_thread() or self._descriptors is not None:
            return
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        self._descriptors = reading, writing
        self._previous_wakeup = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        for number in SIGNALS:
            signal.signal(number, self._note)
        threading.Thread(target=_count, args=(reading,), daemon=True).start()

    def end(self) -> None:
        """Give the signals back."""
        if self._descriptors is None:
            return
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._previous_wakeup)
        os.write(self._descriptors[1], _END)
        os.close(self._descriptors[1])
        self._descriptors = None

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True


def _count(reading: int) -> None:
    events, latest = 0, -_SAME_EVENT_SECONDS
    while _END not in (received := os.read(reading, 64)):
        now = time.monotonic()
        if not any(number in received for number in SIGNALS) or now - latest < _SAME_EVENT_SECONDS:
            continue
        events, latest = events + 1, now
        if events == _LAST_EVENT:
            logger.error("the third request to end: this process ends now, without a further checkpoint")
            os._exit(_STATUS)
        if events > 1:
            logger.warning("asked again to end; a checkpoint is written first (once more ends the run at once)")
    os.close(reading)
