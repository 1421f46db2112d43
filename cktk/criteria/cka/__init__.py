"""Centered kernel alignment from additive statistics."""
