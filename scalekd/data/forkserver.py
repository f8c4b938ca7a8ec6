"""Preload module of the fork server: its imports are what worker processes start with.

With several ranks, a rank's worker processes are forked from multiprocessing's fork server; see
`worker.start_method`. The server imports this module once, and nothing else does. Its worker
processes inherit torch, timm and the data sources, and need not import them again.

A signal that stops a run is sent to all of its processes. The server must ignore it, since its
worker processes end with it and the main process still needs their batches. It ends with the main
process, at once: what it has imported takes seconds to clean up.
"""

import signal

import scalekd.data.open  # noqa: F401 -- preloaded for the worker processes
from scalekd.processes import ask_to_be_killed_with_parent
from scalekd.signals import STOP_SIGNALS

for received in STOP_SIGNALS:
    signal.signal(received, signal.SIG_IGN)
ask_to_be_killed_with_parent()
