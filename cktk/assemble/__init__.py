"""From settings to a training run: every object is made here, once, from plain arguments."""

from cktk.assemble.run import train

__all__ = ["train"]
