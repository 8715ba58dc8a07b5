"""The threads that read ahead, among all that other tests have left behind."""

import threading


def threads() -> set[threading.Thread]:
    """Returns those that live now."""
    return {t for t in threading.enumerate() if t.name.startswith("read ahead")}
