"""Signals, each in a process of its own."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time

import pytest

from trainer import watch

# Holds Python's interpreter as the compiled loop does: in one call, between whose start and end no handler runs.
LOOPING = """
import sys
from trainer import reporting, watch
import tensorflow as tf
reporting.log_to(None)
for name, seconds in {seconds}.items():
    setattr(watch, name, seconds)
body = lambda i: i + 1
loop = tf.function(lambda: tf.while_loop(lambda i: i < 10**12, body, [tf.constant(0, tf.int64)]))
with watch.StopSignal() as stop, watch.no_silent_wait({service!r}, usual_s=0.0):
    print("ready", flush=True)
    loop()
"""
EVALUATING = """
import sys, time
from trainer import reporting, watch
reporting.log_to(None)
def evaluate():
    print("ready", flush=True)
    try:
        time.sleep(600)
    finally:
        assert not {fails}, "Concurrent access?"
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


def read_until(process: subprocess.Popen[str], text: str) -> None:
    """Reads stderr up to a line with `text`; TensorFlow may say something of its own before."""
    assert process.stderr is not None
    assert any(text in line for line in process.stderr)


@pytest.mark.parametrize(("number", "fails"), [(signal.SIGTERM, False), (signal.SIGINT, False), (signal.SIGTERM, True)])
def test_a_signal_ends_an_evaluation(number: signal.Signals, fails: bool) -> None:
    """Also where code that it interrupts raises something else, as TensorFlow's does while it traces."""
    process = start(EVALUATING.format(fails=fails))
    process.send_signal(number)
    out, err = process.communicate(timeout=120)  # it would sleep for 600 s
    assert (process.returncode, out) == (128 + number, "None None\n")
    assert f"{number.name}: saving after this loop; send it again to stop at once, without saving" in err


def test_an_error_of_an_evaluation_is_no_signal() -> None:
    with pytest.raises(ZeroDivisionError):
        watch.StopSignal().interruptible(lambda: 1 / 0)


def test_a_second_signal_ends_a_compiled_loop_at_once() -> None:
    process = start(LOOPING.format(service="", seconds={}))
    process.send_signal(signal.SIGTERM)
    read_until(process, "SIGTERM: saving")  # the log answers, and the loop goes on
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGINT


def test_a_signal_ends_a_loop_that_does_not_return() -> None:
    process = start(LOOPING.format(service="", seconds={"_SECONDS_TO_STOP": 0.5}))
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    assert "still not done: ending without it. The same command resumes from the last checkpoint" in err


def test_a_lost_dispatcher_ends_the_run_and_other_waits_are_mentioned() -> None:
    seconds = {"_SECONDS_TO_LOOK": 0.1, "_SECONDS_TO_LOSE": 0.3, "_SECONDS_TO_SAY": 0.2}
    with socket.create_server(("127.0.0.1", 0)) as server:
        service = f"grpc://127.0.0.1:{server.getsockname()[1]}"
        process = start(LOOPING.format(service=service, seconds=seconds))
        read_until(process, "the run waits for data; do the workers of --data_service run?")
        assert process.poll() is None
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert f"the dispatcher of --data_service={service} is lost: it has not answered for" in err


@pytest.mark.parametrize(("usual_s", "is_said"), [(None, False), (60.0, False), (0.01, True)])
def test_a_loop_that_takes_as_long_as_the_one_before_is_no_wait(monkeypatch, caplog, usual_s, is_said) -> None:
    """Nor is one that has to be compiled first, of which no time is known."""
    monkeypatch.setattr(watch, "_SECONDS_TO_LOOK", 0.02)
    monkeypatch.setattr(watch, "_SECONDS_TO_SAY", 0.05)
    monkeypatch.setattr(watch.log, "propagate", True)
    with watch.no_silent_wait("", usual_s):
        time.sleep(0.3)
    assert ("the run waits for data or another worker" in caplog.text) == is_said
