"""Which hooks are loaded, and what their errors do."""

from __future__ import annotations

import pytest

from trainer import events


class Recorder(events.Hook):
    def __init__(self):
        self.seen = []

    def on_log(self, event):
        self.seen.append(event["step"])

    def on_end(self, event):
        self.seen.append("end")


class Broken(events.Hook):
    """Cannot report even steps, nor start after step 0."""

    def on_start(self, event):
        if event["step"]:
            raise OSError("no account")

    def on_log(self, event):
        if event["step"] % 2 == 0:
            raise RuntimeError("no network")


def test_a_hook_is_named_by_its_module_and_class():
    first, second = events.load_hooks(["test_events:Recorder", "test_events:Broken"])
    assert (type(first).__name__, type(second).__name__) == ("Recorder", "Broken")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere_at_all:Hook", "No module named 'nowhere_at_all'. Write MODULE:CLASS, and put"),
        ("test_events:Missing", "has no attribute 'Missing'. Write MODULE:CLASS"),
        ("test_events", "Write MODULE:CLASS"),
        ("", "Write MODULE:CLASS"),
        ("pathlib:Path", "the class must be derived from trainer.events.Hook"),
        ("test_events:events", "the class must be derived from trainer.events.Hook"),
    ],
)
def test_what_is_no_hook_is_refused(name, message):
    with pytest.raises(ValueError, match=f"--hooks={name}: .*{message}"):
        events.load_hooks([name])


def test_the_error_of_a_hook_is_logged_until_it_works_again_and_others_are_told(caplog):
    caplog.set_level("INFO", "retinanet")
    recorder = Recorder()
    told = events.Events([Broken(), recorder])
    told.tell("on_end")  # nothing has started
    told.tell("on_start", step=0)
    for step in (2, 4, 5, 6):
        told.tell("on_log", step=step)
    assert recorder.seen == [2, 4, 5, 6]
    assert caplog.messages == ["Broken.on_log failed (no network); the run goes on"] * 2  # of the steps 2 and 6


def test_the_end_is_told_to_the_hooks_that_have_started(caplog):
    first, last = Recorder(), Recorder()
    told = events.Events([first, Broken(), last])
    with pytest.raises(OSError, match="no account"):
        told.tell("on_start", step=1)
    told.tell("on_end")
    assert (first.seen, last.seen) == (["end"], [])
    assert not caplog.messages
