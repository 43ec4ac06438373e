"""Servers of tf.data's service: machines without GPUs that decode for a trainer whose own cores are too few.

Start `python -m trainer.data_service --role=dispatcher --port=5050` on one machine, then
`python -m trainer.data_service --role=worker --dispatcher=HOST:5050 --host=OWN_NAME` on as many as are to help, and
train with `--data_service=grpc://HOST:5050`. Each machine needs this project, and the records under the same path.
"""

from __future__ import annotations

import socket
import time
from typing import Any

from absl import flags as absl_flags
from absl import logging

from trainer import command

_NO_ADDRESS = "it names no host and port"
_SECONDS_TO_WAIT = 300.0  # for a dispatcher, since machines that are started together do not come up together


def start(role: str, *, port: int = 0, dispatcher: str = "", host: str = "localhost") -> Any:
    """Starts a server in this process; it stops when the object returned is deleted.

    Args:
      role: dispatcher, which shares out the work, or worker.
      port: the port to listen at; 0: any that is free.
      dispatcher: the address of a worker's dispatcher, as HOST:PORT or grpc://HOST:PORT.
      host: a worker's own name, as trainers reach it.

    Returns:
      A `DispatchServer` or a `WorkerServer` of `tf.data.experimental.service`.

    Raises:
      ValueError: a worker without a dispatcher, or with one that does not answer for some minutes.
    """
    import tensorflow as tf

    service = tf.data.experimental.service
    if role == "dispatcher":
        # Not fault-tolerant: when the dispatcher ends, the trainer ends too, and resumes from its checkpoint.
        return service.DispatchServer(service.DispatcherConfig(port=port))
    if not dispatcher:
        raise ValueError("--role=worker needs --dispatcher=HOST:PORT.")
    dispatcher = dispatcher.removeprefix("grpc://")
    _wait_for(dispatcher)
    # TensorFlow replaces %port% by the port that it was given.
    return service.WorkerServer(
        service.WorkerConfig(dispatcher_address=dispatcher, worker_address=f"{host}:%port%", port=port)
    )


def answers(address: str) -> bool:
    """Whether something listens at this address, written grpc://HOST:PORT."""
    return _why_silent(address) is None


def require_running(address: str) -> None:
    """Refuses a service that does not answer; TensorFlow would wait for it forever, without a message.

    Raises:
      ValueError: nothing answers at the address.
    """
    if reason := _why_silent(address):
        raise ValueError(
            f"--data_service={address} does not answer ({reason}): write grpc://HOST:PORT, as the dispatcher prints it."
        )


def _wait_for(dispatcher: str) -> None:
    """Waits until the dispatcher of a worker answers; TensorFlow would do so forever, without a message.

    Raises:
      ValueError: it is no address, or nothing answers there in time.
    """
    started = time.monotonic()
    while reason := _why_silent(f"grpc://{dispatcher}"):
        waited = time.monotonic() - started
        if reason == _NO_ADDRESS or waited >= _SECONDS_TO_WAIT:
            raise ValueError(
                f"--dispatcher={dispatcher} does not answer ({reason}): write HOST:PORT, with the name of the machine "
                "where --role=dispatcher runs and its port."
            )
        logging.log_every_n_seconds(
            logging.WARNING, "waiting for --dispatcher=%s, which does not answer (%s)", 60, dispatcher, reason
        )
        time.sleep(1)


def _why_silent(address: str) -> str | None:
    host, _, port = address.partition("://")[2].rpartition(":")
    if not (host and port.isdecimal()) or "/" in host:
        return _NO_ADDRESS
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        return str(error)
    return None


def main() -> None:
    flags = absl_flags.FLAGS
    server = start(flags.role, port=flags.port, dispatcher=flags.dispatcher, host=flags.host)
    if flags.role == "dispatcher":
        print(f"train with --data_service={server.target}, with this machine's name in place of localhost", flush=True)
    server.join()


if __name__ == "__main__":
    absl_flags.DEFINE_enum("role", None, ["dispatcher", "worker"], "What this process is.", required=True)
    absl_flags.DEFINE_integer(
        "port", 0, "The port to listen at; 0: any that is free.", lower_bound=0, upper_bound=65535
    )
    absl_flags.DEFINE_string("dispatcher", "", "The address of a worker's dispatcher: HOST:PORT, or as it prints it.")
    absl_flags.DEFINE_string("host", "localhost", "A worker's own name, as the trainer reaches it.")
    command.run(main)
