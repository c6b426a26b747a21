"""How a process begins that draws and encodes for another one."""

from __future__ import annotations

import os
import signal
from multiprocessing import parent_process
from threading import Thread


def start_process() -> None:
    """Ctrl-C goes to all processes of a terminal: the one that waits for the others deals with it, and where
    that one is killed, these end as well."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
