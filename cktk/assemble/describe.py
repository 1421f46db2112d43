"""What is matched, in stages or not, and what that takes of memory, in words: the lines at the start of a run."""

from __future__ import annotations

from collections.abc import Iterator

from cktk.architectures.states.layer_map import layer_table
from cktk.assemble.models import Models
from cktk.assemble.recorded_teacher import RecordedTeacher
from cktk.config.command import Settings
from cktk.criteria.score_match import matrix_budget
from cktk.data.batch_config import BatchingConfig
from cktk.engine.configs import ModelsConfig, UpdateConfig
from cktk.engine.step import StagedCriterion, Step
from cktk.protocols import AttentionPair, Needs, Side

_MIB = 2**20
#: Positions of a sentence where neither models nor task set a limit.
_LENGTH = 512


def describe_matching(settings: Settings, models: Models, step: Step) -> Iterator[str]:
    """What is matched: the layer map, the attention blocks, and the memory that two passes take."""
    needs = step.all_needs()
    if needs.pairs:
        yield f"layer map (student state <- teacher state):\n{layer_table(needs.pairs)}"
    if needs.first:
        yield f"layer map of first positions (student state <- teacher state):\n{layer_table(needs.first)}"
    kinds = dict.fromkeys(block.kind for block in needs.attention)
    if kinds:
        pairs = {kind: [f"{b.student}<-{b.teacher}" for b in needs.attention if b.kind == kind] for kind in kinds}
        words = "; ".join(f"{kind} {', '.join(found)}" for kind, found in pairs.items())
        yield f"attention matched (student layer <- teacher layer): {words}"
        yield _attention_memory(settings, models, step)
    if isinstance(step.criterion, StagedCriterion):
        stages = "; ".join(f"{number} {name}" for number, (name, _) in enumerate(step.criterion.plan, start=1))
        yield f"stages: {stages}"
    waiting = max(settings.section(UpdateConfig).update_freq) - 1
    if models.teacher is not None and step.train_criterion.collects == "before" and waiting:
        yield _waiting_states(settings, models, needs, waiting)


def _attention_memory(settings: Settings, models: Models, step: Step) -> str:
    """What attention takes while it is matched: at most, where batches are full and computed in float32."""
    assert models.teacher is not None
    criterion, tokens, length = step.criterion, _tokens(settings, models), _longest(settings, models)
    needs = [each for _, each in criterion.plan] if isinstance(criterion, StagedCriterion) else [step.all_needs()]
    student, teacher = models.shape(models.student), models.shape(models.teacher)

    def projections(block: AttentionPair) -> int:
        side = _side(block)
        return 3 * 4 * tokens * (student.attention_width(side) + teacher.attention_width(side))

    in_play = [(sum(map(projections, each.attention)), len(each.attention)) for each in needs]
    most, blocks = max(in_play)
    heads = max(s.heads for shape in (student, teacher) for s in shape.sides.values())
    row = heads * length * 4  # of all heads
    device = next(models.student.parameters()).device.type
    sliced = min(max(matrix_budget(device), row * length), tokens * row)
    number = f"{blocks} block" + ("s" if blocks != 1 else "")
    return (
        f"attention of {number} at a time: queries, keys and values of both models take at most {most / _MIB:.1f} MiB "
        f"a micro-batch; probabilities exist for a few sentences at a time, {sliced / _MIB:.1f} MiB a matrix "
        f"(all of one block: {tokens * row / _MIB:.1f} MiB)"
    )


def _side(block: AttentionPair) -> Side:
    return "encoder" if block.kind == "encoder" else "decoder"


def _longest(settings: Settings, models: Models) -> int:
    """The most positions of a sentence, on either side."""
    task = settings.component("task")[1]
    cut = [getattr(task, f"max_{side}_positions", None) or 0 for side in ("source", "target")]
    return min((limit for limit in (models.max_positions, max(cut)) if limit), default=_LENGTH)


def _tokens(settings: Settings, models: Models) -> int:
    """The most positions of a micro-batch, pads included."""
    batching = settings.section(BatchingConfig)
    return batching.token_budget or (batching.batch_size or 1) * _longest(settings, models)


def _waiting_states(settings: Settings, models: Models, needs: Needs, micro_batches: int) -> str:
    """Where the teacher's states of ``micro_batches`` wait for the second pass, and how much memory they take."""
    config, recorded = settings.section(ModelsConfig), isinstance(models.teacher, RecordedTeacher)
    if config.teacher_states == "recompute":
        words = "the teacher's states are read twice" if recorded else "the teacher runs twice"
        return f"{words} for all but one micro-batch of an update (--teacher-states recompute)"
    size = micro_batches * _state_bytes(settings, models, needs) / 2**30
    place = "main memory" if config.teacher_states == "host" else "the memory of the device"
    flags = "--teacher-states host or recompute" + ("" if recorded else ", --teacher-states-dtype bfloat16")
    words = f"teacher states kept between the two passes of an update: at most {size:.2f} GiB a process in {place}"
    return f"{words} ({flags})"


def _state_bytes(settings: Settings, models: Models, needs: Needs) -> int:
    """The most that the teacher's states of one micro-batch take."""
    assert models.teacher is not None
    tokens, teacher = _tokens(settings, models), models.shape(models.teacher)
    request = needs.request("teacher", head=needs.teacher_head)
    states = sum(map(len, request.hidden.values()))
    dtype = settings.section(ModelsConfig).teacher_states_dtype
    if isinstance(models.teacher, RecordedTeacher):
        dtype = models.teacher.cache.key.states_dtype
    elif "decoder" in teacher.sides:  # what enters the head, unless it is matched as well
        states += request.head and teacher.sides["decoder"].layers not in request.hidden.get("decoder", ())
    return tokens * states * teacher.width * (4 if dtype in ("auto", "float32") else 2)
