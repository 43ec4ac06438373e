"""Training, evaluation, export and prediction: composes `input` and `model`."""
