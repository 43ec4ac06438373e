"""Signals, each in a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

# Holds Python's interpreter as the compiled loop does: in one call, between whose start and end no handler runs.
LOOPING = """
import sys
from trainer import reporting, watch
import tensorflow as tf
reporting.log_to(None)
body = lambda i: i + 1
loop = tf.function(lambda: tf.while_loop(lambda i: i < 10**12, body, [tf.constant(0, tf.int64)]))
with watch.StopSignal() as stop:
    print("ready", flush=True)
    loop()
"""
EVALUATING = """
import sys, time
from trainer import reporting, watch
reporting.log_to(None)
def evaluate():
    print("ready", flush=True)
    time.sleep(600)
with watch.StopSignal() as stop:
    print(stop.interruptible(lambda: 5), flush=True)
    print(stop.interruptible(evaluate), stop.interruptible(lambda: 2), flush=True)
sys.exit(128 + stop.received)
"""


def start(script: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1)
    assert process.stdout is not None
    while process.stdout.readline() != "ready\n":
        assert process.poll() is None
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_an_evaluation(number: signal.Signals) -> None:
    process = start(EVALUATING)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)  # it would sleep for 600 s
    assert (process.returncode, out) == (128 + number, "None None\n")
    assert f"{number.name}: saving after this loop; send it again to stop at once, without saving" in err


def test_a_second_signal_ends_a_compiled_loop_at_once() -> None:
    process = start(LOOPING)
    assert process.stderr is not None
    process.send_signal(signal.SIGTERM)
    assert "SIGTERM: saving" in process.stderr.readline()  # the log answers, and the loop goes on
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGINT
