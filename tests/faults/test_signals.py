"""A signal that arrives where Python can only ignore an exception is acted on just after it."""

from __future__ import annotations

import os
import signal
import sys
import time

import pytest

from kdjax import signals
from kdjax.settings import Interrupted


class Dies:
    """Is interrupted while it is being removed, as a callback of the garbage collector may be."""

    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)


def test_a_signal_in_a_finalizer_ends_the_work_without_a_traceback(capsys):
    before = sys.unraisablehook
    reached = False
    with pytest.raises(Interrupted, match="what is saved stays"), signals.watched():
        Dies()
        time.sleep(0.5)
        reached = True
    assert not reached, "the work goes on"
    assert sys.unraisablehook is before and "ignored" not in capsys.readouterr().err


def test_a_signal_in_a_finalizer_within_a_step_is_noted():
    with pytest.raises(Interrupted), signals.watched() as asked, asked.later():
        Dies()
        assert asked == {"signal": signal.SIGTERM}
