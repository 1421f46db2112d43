"""Names inside a run directory that more than the training engine has to know."""

from __future__ import annotations

#: The model folder of a checkpoint, in Hugging Face's format.
STUDENT = "student"

#: Links to the newest checkpoint and to the one that validated best.
LAST, BEST = "checkpoint_last", "checkpoint_best"
