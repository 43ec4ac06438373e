"""From image files and annotations to batches and anchor targets. Imports nothing of the project."""
