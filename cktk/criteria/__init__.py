"""Losses between a student, its teacher and the gold labels."""
