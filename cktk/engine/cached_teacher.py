"""A teacher whose answers were recorded by cktk-cache-teacher: no model in memory."""

from __future__ import annotations

from cktk.data.teacher_cache.cached_split import CachedSplit
from cktk.data.teacher_cache.reader import row_digests
from cktk.errors import ConfigError, DataError
from cktk.protocols import Batch, HeadParams, ModelOutput, Needs, Side, StateRequest


class CachedTeacher:
    """Stands in for a `FrozenTeacher` on the rows of one split.

    Raises `ConfigError` for what a cache cannot give, or this one does not have.
    """

    #: The targets replace head and head input.
    head: HeadParams | None = None

    def __init__(self, split: CachedSplit, needs: Needs) -> None:
        request = needs.request("teacher", head=needs.teacher_head)
        _check_states(split, request)
        self._split = split
        self._request = request

    def states(self, batch: Batch) -> ModelOutput:
        """The recorded states and targets of ``batch``, packed, on its device.

        Raises `DataError` for a row that is not the one that was recorded.
        """
        ids = [] if batch.dummy else batch.ids
        if ids:
            self._check_rows(batch)
        output = ModelOutput(
            hidden={
                (side, layer): self._split.states(side, layer, ids)
                for side, layers in self._request.hidden.items()
                for layer in layers
            },
            targets=self._split.targets(ids) if self._request.head else None,
        )
        device = batch.labels.device
        return output.map(lambda tensor: tensor.to(device, non_blocking=True))

    def weight_bytes(self) -> int:
        """None: there is no model."""
        return 0

    def _check_rows(self, batch: Batch) -> None:
        differ = self._split.digests(batch.ids) != row_digests(batch)
        if differ.any():
            raise DataError(
                f"the teacher cache {self._split.cache.path} is stale: row {batch.ids[int(differ.argmax())]} of split "
                f"{self._split.name} is not what the teacher was shown; run cktk-cache-teacher again, or use --teacher "
                "if the task draws rows anew each time"
            )


def _check_states(split: CachedSplit, request: StateRequest) -> None:
    path = split.cache.path
    if any(request.attention.values()):
        raise ConfigError(
            f"the criterion looks at the teacher's attention, which the teacher cache {path} does not hold: use "
            "--teacher, or a criterion without attention (no --attention-match)"
        )
    if any(request.first.values()):
        raise ConfigError(
            f"the criterion looks at the first positions of the teacher's sentences, which the teacher cache {path} "
            "does not hold: use --teacher"
        )
    held = split.cache.key.states
    for side, layers in request.hidden.items():
        if missing := sorted(set(layers) - set(held.get(side, ()))):
            raise ConfigError(
                f"the criterion looks at teacher states {_words(side, missing)}, but the teacher cache {path} has "
                f"{_held(split)}; make one with cktk-cache-teacher --hidden-states and this student's "
                "--encoder-layers, --decoder-layers, --layer-map and --match-embeddings"
            )


def _held(split: CachedSplit) -> str:
    sides = [_words(side, layers) for side, layers in split.cache.key.states.items() if layers]
    return " and ".join(sides) or "none"


def _words(side: Side, layers: tuple[int, ...] | list[int]) -> str:
    return f"{side} {', '.join(map(str, layers))}"
