"""Binarised data and batches."""
