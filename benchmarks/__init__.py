"""Measurements, one script an area; peers are measured in the same run."""
