"""What processes that read data do about signals.

A scheduler signals all processes of a run. Readers go on then, because the run finishes its step and saves; they end
when the process that started them does, or says so.
"""

import os
import signal
import threading


def outlive_signals(worker: int) -> None:
    """Ignore SIGTERM and SIGUSR1 unless they come from the parent: the `worker_init_fn` of data loaders."""
    if not hasattr(signal, "sigwaitinfo"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        return
    awaited = {signal.SIGTERM, signal.SIGUSR1}
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    threading.Thread(target=_end_with_parent, args=(awaited, os.getppid()), daemon=True).start()


def _end_with_parent(awaited: set[signal.Signals], parent: int) -> None:
    while True:
        if signal.sigwaitinfo(awaited).si_pid == parent:
            os._exit(0)
