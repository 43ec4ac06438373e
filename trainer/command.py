"""How every command starts and how it fails. No TensorFlow import here, so that `--help` answers at once."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, logging


def run(main: Callable[..., Any], arguments: Sequence[str] = ()) -> None:
    """Parses the flags, calls `main` and ends the process.

    `main` is given the arguments that are no flags, as one list, where `arguments` names them; otherwise there must be
    none. An error that tells the user what to do (ValueError, OSError, FloatingPointError) ends the process as one
    line, `error: ...`, since a traceback would bury it. Ctrl-C ends it with the exit code 130.
    """

    def checked_main(argv: list[str]) -> None:
        if arguments and len(argv) != 1 + len(arguments):
            sys.exit(f"error: give {' and '.join(arguments)}, and flags written --name=value.")
        if not arguments and len(argv) > 1:
            sys.exit(f"error: unexpected arguments: {' '.join(argv[1:])}; flags are written --name=value.")
        try:
            main(*([argv[1:]] if arguments else []))
        except OSError as error:
            sys.exit(f"error: {error.filename}: {error.strerror}" if error.filename else f"error: {error}")
        except (ValueError, FloatingPointError) as error:
            sys.exit(f"error: {error}")
        except KeyboardInterrupt:
            sys.exit(128 + signal.SIGINT)

    # Unless --verbosity is given, app.run would raise it to INFO, at which TensorFlow names all that it writes.
    logging.set_verbosity(logging.WARNING)
    app.run(checked_main)
