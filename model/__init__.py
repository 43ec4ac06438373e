"""The RetinaNet network, its losses and its post-processing. Imports only from `input`."""
