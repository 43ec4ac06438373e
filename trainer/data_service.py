"""Machines without GPUs that decode for one whose cores cannot feed its GPUs: tf.data's service.

`python -m trainer.data_service --role=dispatcher --port=5050` on one machine, then, on as many as help,
`python -m trainer.data_service --role=worker --dispatcher=HOST:5050 --host=OWN_NAME`, and train with
`--data_service=grpc://HOST:5050`. All of them need this project, and the records under the same path.
"""

import sys

from absl import app
from absl import flags as absl_flags


def start(role: str, *, port: int = 0, dispatcher: str = "", host: str = "localhost"):
    """Starts a server in this process; it ends with the object that is returned.

    Args:
      role: dispatcher, which shares out the work, or worker.
      port: to listen at; 0: any that is free.
      dispatcher: a worker's dispatcher, as HOST:PORT.
      host: a worker's own name, as trainers reach it.

    Raises:
      ValueError: a worker without a dispatcher.
    """
    import tensorflow as tf

    service = tf.data.experimental.service
    if role == "dispatcher":
        # Without fault tolerance: when it ends, the trainer ends too, and goes on from its checkpoint.
        return service.DispatchServer(service.DispatcherConfig(port=port))
    if not dispatcher:
        raise ValueError("--role=worker needs --dispatcher=HOST:PORT.")
    # TensorFlow puts in the port that it has got.
    return service.WorkerServer(
        service.WorkerConfig(dispatcher_address=dispatcher, worker_address=f"{host}:%port%", port=port)
    )


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}; flags are written --name=value.")
    flags = absl_flags.FLAGS
    try:
        server = start(flags.role, port=flags.port, dispatcher=flags.dispatcher, host=flags.host)
    except ValueError as error:
        sys.exit(f"error: {error}")
    if flags.role == "dispatcher":
        print(f"train with --data_service={server.target}, with this machine's name in place of localhost", flush=True)
    server.join()


if __name__ == "__main__":
    absl_flags.DEFINE_enum("role", None, ["dispatcher", "worker"], "What this process is.", required=True)
    absl_flags.DEFINE_integer("port", 0, "Port to listen at; 0: any that is free.", lower_bound=0)
    absl_flags.DEFINE_string("dispatcher", "", "A worker's dispatcher, as HOST:PORT.")
    absl_flags.DEFINE_string("host", "localhost", "A worker's own name, as the trainer reaches it.")
    app.run(main)
