"""Messages for people: one logger, on stderr, silent on ranks other than 0."""

from __future__ import annotations

import logging
import sys

logger = logging.getLogger("cktk")


def setup_logging(rank: int = 0) -> None:
    """Send messages to stderr; ranks above 0 only speak up for warnings."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s | %(levelname)s | %(message)s", "%H:%M:%S"))
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(logging.INFO if rank == 0 else logging.WARNING)
