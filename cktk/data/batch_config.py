"""Settings of batch making."""

from __future__ import annotations

from dataclasses import dataclass

from cktk.config.options import option

#: The token budget when neither --max-tokens nor --batch-size is given.
DEFAULT_MAX_TOKENS = 4096


@dataclass(frozen=True)
class BatchingConfig:
    """batches"""

    max_tokens: int | None = option(
        None,
        minimum=1,
        help=f"tokens in a micro-batch at most: sentences x longest side, padding included "
        f"(default: {DEFAULT_MAX_TOKENS} unless --batch-size is given)",
    )
    batch_size: int | None = option(None, minimum=1, help="sentences in a micro-batch at most")
    samples_per_epoch: int | None = option(
        None,
        minimum=1,
        help="end an epoch with the micro-batch that reaches this many sentences; the next epoch goes on behind it "
        "(default: an epoch is the whole training split)",
    )
    train_subset: int | None = option(
        None,
        minimum=1,
        help="train on so many rows of the training split, drawn by --seed; a smaller number gives a part of the rows "
        "of a larger one (one corpus; default: all rows)",
    )
    num_workers: int = option(0, minimum=0, resume="free", help="processes that load batches ahead; 0: load in place")

    @property
    def token_budget(self) -> int | None:
        """The token limit in force: --max-tokens, or its default if nothing limits the batch, or None."""
        if self.max_tokens is None and self.batch_size is None:
            return DEFAULT_MAX_TOKENS
        return self.max_tokens
