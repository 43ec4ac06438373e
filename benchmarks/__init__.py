"""Measurements, each a command; they are not installed."""
