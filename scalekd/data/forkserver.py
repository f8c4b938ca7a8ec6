"""What the server of a rank's loading processes imports, once; nobody else does.

What ends a run goes to all its processes. This one must outlive it, since its children end with it,
and the main one still needs their batches.
"""

import signal

import scalekd.data.open  # noqa: F401 -- with torch and timm, for the children
from scalekd.signals import STOP_SIGNALS

for received in STOP_SIGNALS:
    signal.signal(received, signal.SIG_IGN)
