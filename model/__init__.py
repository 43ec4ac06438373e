"""The RetinaNet network, its losses and its post-processing. It imports only from `input`."""
