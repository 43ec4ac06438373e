"""How commands start and fail, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SCRIPT = """
import sys
from trainer import command

def main():
    if "tensorflow" in sys.modules:
        sys.exit("TensorFlow was imported")
    {body}

command.run(main)
"""


def run_command(body: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    script = SCRIPT.format(body=body)
    return subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)


def test_a_command_runs():
    done = run_command("print('hello')")
    assert (done.returncode, done.stdout, done.stderr) == (0, "hello\n", "")


@pytest.mark.parametrize("kind", ["ValueError", "FileNotFoundError", "FloatingPointError"])
def test_an_expected_error_is_one_line(kind):
    done = run_command(f"raise {kind}('the disk is full: free some space.')")
    assert (done.returncode, done.stderr) == (1, "error: the disk is full: free some space.\n")


def test_an_error_of_the_system_names_the_file():
    done = run_command("open('/nowhere/labels.txt')")
    assert (done.returncode, done.stderr) == (1, "error: /nowhere/labels.txt: No such file or directory\n")


def test_an_interrupt_is_no_traceback():
    """A process in the background of a shell script ignores the signal, and so would this one: hence the handler."""
    handle = "signal.signal(signal.SIGINT, signal.default_int_handler)"
    done = run_command(f"import signal; {handle}; signal.raise_signal(signal.SIGINT)")
    assert (done.returncode, done.stderr) == (130, "")


@pytest.mark.parametrize(("given", "expected"), [(None, "gpu_private"), ("global", "global")])
def test_each_gpu_has_its_own_threads_unless_the_user_says_otherwise(given, expected):
    environment = {key: value for key, value in os.environ.items() if key != "TF_GPU_THREAD_MODE"}
    if given:
        environment["TF_GPU_THREAD_MODE"] = given
    script = "import os, sys, trainer; print(os.environ['TF_GPU_THREAD_MODE'], 'tensorflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == f"{expected} False\n"


def test_an_unexpected_error_keeps_its_traceback():
    done = run_command("raise TypeError('a bug')")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_an_argument_that_is_no_flag_is_a_usage_error():
    done = run_command("print('hello')", "OUT/train-*", "more")
    assert done.returncode == 1
    assert "unexpected arguments: OUT/train-* more; flags are written --name=value." in done.stderr
    assert "hello" not in done.stdout


def test_messages_of_libraries_are_shown_on_demand():
    """TensorFlow writes to absl's log and to its own, whose level is the root's; our log has a level of its own."""
    body = """import logging, absl.logging
    absl.logging.info("from absl")
    logging.getLogger("tensorflow").info("from TensorFlow")
    absl.logging.warning("a warning")
    from trainer import reporting
    reporting.log_to(None)
    reporting.log.info("our own line")"""
    done = run_command(body)
    assert done.returncode == 0
    assert "a warning" in done.stderr
    assert done.stderr.rstrip().endswith("our own line")
    assert "from " not in done.stderr
    assert "from absl" in (more := run_command(body, "--verbosity=0").stderr)
    assert "from TensorFlow" in more
