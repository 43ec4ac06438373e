"""The converter's work on Apache Beam, for data sets that are too large for one machine.

Beam's workers do what worker processes do, so the shards are the same, byte for byte. Arguments and results travel in
files that all machines reach, since a pipeline takes only a few megabytes itself and returns nothing.
"""

from __future__ import annotations

import logging
import os
import pickle
import shlex
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from input import files
from input.conversion.config import ConversionError
from input.conversion.workers import Advance, Workers

SCRATCH = ".beam.partial"  # folder in the output folder

_Argument = TypeVar("_Argument")
_Result = TypeVar("_Result")


class BeamWorkers(Workers):
    """`Workers` on a Beam runner."""

    def __init__(self, runner: str, options: Sequence[str], output_dir: str):
        """
        Args:
          runner: DirectRunner, DataflowRunner, ...
          options: flags of Beam and the runner, one or several in a string.
          output_dir: a folder that all workers can read and write.

        Raises:
          ConversionError: Beam is not installed.
        """
        logging.getLogger("apache_beam").setLevel(logging.WARNING)
        try:
            from apache_beam.options.pipeline_options import PipelineOptions
        except ModuleNotFoundError as error:
            raise ConversionError(
                f"--beam_runner needs Apache Beam ({error}): pip install -e '.[beam]', with Python 3.10 or later."
            ) from error
        arguments = [argument for text in options for argument in shlex.split(text)]
        self._options = PipelineOptions([f"--runner={runner}", *arguments])
        self._folder = os.path.join(output_dir, SCRATCH)

    def __exit__(self, *exception: object) -> None:
        files.remove_tree(self._folder)

    def map(
        self,
        function: Callable[[_Argument, Advance], _Result],
        arguments: Sequence[_Argument],
        total: int,
        what: str,
    ) -> list[_Result]:
        """`function(argument, advance)` of each argument; Beam itself counts how many of `total` images are done.

        An exception raised by `function` is re-raised here.
        """
        import apache_beam as beam

        if not arguments:
            return []
        files.remove_tree(self._folder)
        files.make_dirs(self._folder)
        for index, argument in enumerate(arguments):
            with files.create(_argument_path(self._folder, index)) as file:
                file.write(pickle.dumps(argument))
        try:
            with beam.Pipeline(options=self._options) as pipeline:
                indexes = pipeline | what >> beam.Create(range(len(arguments))) | beam.Reshuffle()
                indexes | beam.Map(_work, function=function, folder=self._folder)
        except Exception as error:  # runners raise almost anything
            raise ConversionError(f"{what}: the Beam pipeline failed: {error}; the same command continues.") from error
        results = []
        for index in range(len(arguments)):
            result, raised = pickle.loads(files.read(_outcome_path(self._folder, index)))
            if raised:
                raise raised
            results.append(result)
        return results


def _work(index: int, function: Callable[[Any, Advance], Any], folder: str) -> None:
    """Runs in a Beam worker. Beam retries what a killed worker did, but an exception is stored, not retried."""
    from apache_beam.metrics import Metrics

    argument = pickle.loads(files.read(_argument_path(folder, index)))
    outcome: tuple[Any, Exception | None]
    try:
        outcome = function(argument, Metrics.counter("convert", "images").inc), None
    except Exception as error:
        outcome = None, error
    with files.create(_outcome_path(folder, index)) as file:
        file.write(pickle.dumps(outcome))


def _argument_path(folder: str, index: int) -> str:
    return os.path.join(folder, f"{index:06d}.argument")


def _outcome_path(folder: str, index: int) -> str:
    return os.path.join(folder, f"{index:06d}.outcome")
