"""Ctrl-C between two steps instead of within one."""

import contextlib
import signal


class Interrupted(KeyboardInterrupt):
    """Ctrl-C was pressed, and all is saved."""


@contextlib.contextmanager
def interrupts():
    """A function that tells whether Ctrl-C was pressed; a second press interrupts at once."""
    pressed = []

    def note(number, frame):
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    try:
        before = signal.signal(signal.SIGINT, note)
    except ValueError:  # not the main thread, where signals cannot be handled
        yield lambda: False
        return
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)
