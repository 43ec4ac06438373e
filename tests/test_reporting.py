"""A log file for each day."""

from __future__ import annotations

import logging

from trainer import reporting


def test_each_day_has_its_log_file(tmp_path):
    handler = reporting.DailyFileHandler(str(tmp_path))
    for created, text in ((1_700_000_000, "first"), (1_700_000_060, "second"), (1_700_172_800, "two days on")):
        record = logging.makeLogRecord({"msg": text, "levelname": "INFO", "created": created})
        handler.emit(record)
    days = sorted(path.name for path in tmp_path.iterdir())
    assert len(days) == 2
    assert all(len(name) == len("2026-01-31.log") for name in days)
    assert "first" in (tmp_path / days[0]).read_text()
    assert "second" in (tmp_path / days[0]).read_text()
    assert "two days on" in (tmp_path / days[1]).read_text()


def test_the_log_file_holds_what_is_logged_until_it_is_closed(tmp_path):
    handler = reporting.log_to(str(tmp_path))
    reporting.log.info("to be found")
    reporting.stop_logging(handler)
    reporting.log.info("not to be found")
    (file,) = (tmp_path / "logs").iterdir()
    assert "to be found" in file.read_text()
    assert "not to be found" not in file.read_text()
