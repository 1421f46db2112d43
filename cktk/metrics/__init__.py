"""Meters and log writers."""
