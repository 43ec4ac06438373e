"""The training command with a small network in place of RetinaNet's: `python tests/one_worker.py FLAGS`."""

from __future__ import annotations

import runpy

import small_network

from trainer import checkpoints

checkpoints.make_model = small_network.make_model
runpy.run_module("trainer.task", run_name="__main__", alter_sys=True)
