"""Being asked to stop, by Ctrl-C or a scheduler's SIGTERM: the engine ends at a checkpoint instead of in a step."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class Stopping:
    """Which signal asked to stop, if one did."""

    signal: int | None = None


@contextlib.contextmanager
def watched() -> Iterator[Stopping]:
    """Within it the first signal is noted and not obeyed; a second Ctrl-C stops at once.

    Signals reach the main thread alone; in another nothing is watched.
    """
    state, before = Stopping(), {}

    def noted(number: int, frame: FrameType | None) -> None:
        if state.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        state.signal = number

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, noted)
    try:
        yield state
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
