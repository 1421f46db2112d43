"""A plan: students of a teacher that fit a budget, what they cost, how fast they are, and how to train them."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig

from cktk.architectures.configs import HeadKind
from cktk.architectures.families.encoder_family import EncoderFamily
from cktk.architectures.families.family import Family, arch_of, family_of
from cktk.architectures.loading import load_config
from cktk.architectures.plan_config import PlanConfig
from cktk.architectures.sizing import ModelSize, StudentSizes
from cktk.assemble.measure import Speed, SpeedTest
from cktk.assemble.plan import Cost, candidates, cost, parse_count, widths
from cktk.errors import CheckpointError, ConfigError

#: What a student of an encoder is trained for, by what its teacher ends in.
_ENCODER_TASKS: Mapping[HeadKind, Mapping[str, str]] = {
    "masked_lm": {"--task": "pretraining", "--objective": "unmasked", "--ce-weight": "0"},
    "classification": {"--task": "glue"},
    "bare": {"--task": "pretraining", "--objective": "unmasked", "--kl-weight": "0", "--ce-weight": "0"},
}

#: Called with a line on what is being measured.
Report = Callable[[str], None]


@dataclass(frozen=True)
class PlannedStudent:
    """A student that fits; ``speed`` is None where it was not measured. ``command`` trains it."""

    size: ModelSize
    cost: Cost
    speed: Speed | None
    command: str

    @property
    def name(self) -> str:
        """Layers of all sides together, and width: ``12x384``."""
        return size_name(self.size)


@dataclass(frozen=True)
class Plan:
    """The teacher and the students, deep and narrow ones first; ``unmeasured`` says why nothing could be measured."""

    teacher: ModelSize
    teacher_cost: Cost
    students: tuple[PlannedStudent, ...]
    threads: int
    unmeasured: str | None


def size_name(size: ModelSize) -> str:
    """Layers of all sides together, and width: ``12x384``."""
    return f"{sum(side.layers for side in size.shape.sides.values())}x{size.shape.width}"


def make_plan(config: PlanConfig, report: Report) -> Plan:
    """The students that ``config`` asks for.

    Raises `ConfigError` where none fits the budget, and where a latency is asked for that cannot be measured.
    """
    teacher_config = load_config(config.teacher)
    family = family_of(teacher_config.model_type, config.teacher)
    sizes = StudentSizes(family, teacher_config)
    _check_length(config, sizes.teacher)
    meter = _Meter(config, family, sizes, report)
    most = _most_parameters(config, sizes.teacher)

    def fits(size: ModelSize) -> bool:
        if size.parameters.total > most:
            return False
        return config.max_latency_ms is None or meter.latency_ms(size) <= config.max_latency_ms

    students: list[PlannedStudent] = []
    for size in candidates(sizes.teacher, sizes.of, fits):
        speed = meter.speed(size) if len(students) < config.measure else None
        costs = cost(size, sizes.teacher, config.length, config.max_tokens)
        students.append(
            PlannedStudent(size, costs, speed, _command(config, family, teacher_config, sizes.teacher, size))
        )
        if config.max_latency_ms is not None and len(students) == config.measure:
            break  # what was not measured may be too slow
    if not students:
        raise ConfigError(_nothing_fits(sizes, most, config))
    teacher_cost = cost(sizes.teacher, sizes.teacher, config.length, config.max_tokens)
    return Plan(sizes.teacher, teacher_cost, tuple(students), torch.get_num_threads(), meter.reason)


class _Meter:
    """Measures students, each once; after a failure ``reason`` says why nothing can be measured."""

    def __init__(self, config: PlanConfig, family: Family, sizes: StudentSizes, report: Report) -> None:
        self._test = SpeedTest(family, config.length, config.beam, config.batch_size)
        self._sizes = sizes
        self._report = report
        self._latencies: dict[str, float] = {}
        self.reason: str | None = None

    def latency_ms(self, size: ModelSize) -> float:
        """Raises `ConfigError` where it cannot be measured."""
        if self.reason is None and _key(size) not in self._latencies:
            self._report(f"measuring {size_name(size)}")
            try:
                self._latencies[_key(size)] = self._test.latency_ms(self._config(size))
            except CheckpointError as error:
                self.reason = str(error)
        if self.reason is not None:
            raise ConfigError(f"--max-latency-ms: nothing can be measured: {self.reason}")
        return self._latencies[_key(size)]

    def speed(self, size: ModelSize) -> Speed | None:
        """None where it cannot be measured."""
        if self.reason is not None:
            return None
        try:
            latency = self.latency_ms(size)
        except ConfigError:
            return None
        return Speed(self._test.tokens_per_second(self._config(size)), latency)

    def _config(self, size: ModelSize) -> PreTrainedConfig:
        return self._sizes.config(size.shape.width, {side: s.layers for side, s in size.shape.sides.items()})


def _key(size: ModelSize) -> str:
    return repr(size.shape)


def _check_length(config: PlanConfig, teacher: ModelSize) -> None:
    limit = teacher.shape.positions
    if limit is not None and config.length > limit - 2:
        raise ConfigError(f"--length {config.length}: the teacher has {limit} positions; choose {limit - 2} or less")


def _most_parameters(config: PlanConfig, teacher: ModelSize) -> int:
    limits = [teacher.parameters.total]
    if config.max_params is not None:
        limits.append(parse_count(config.max_params, "--max-params"))
    if config.compression is not None:
        limits.append(int(teacher.parameters.total / config.compression))
    return min(limits)


def _nothing_fits(sizes: StudentSizes, most: int, config: PlanConfig) -> str:
    """What the smallest student would be, and how to get there."""
    shape = sizes.teacher.shape
    smallest = sizes.of(widths(shape)[0], dict.fromkeys(shape.sides, 1))
    total, embedding = (count / 1e6 for count in (smallest.parameters.total, smallest.parameters.embedding))
    if smallest.parameters.total <= most and config.max_latency_ms is not None:
        return f"--max-latency-ms {config.max_latency_ms:g}: even the fastest student takes longer here; allow more"
    return (
        f"no student has at most {most:,} parameters: the smallest, {size_name(smallest)}, has {total:.2f} "
        f"M, {embedding:.2f} M of them embeddings; allow more, or make the vocabulary smaller with cktk-trim-vocab"
    )


def _command(
    config: PlanConfig, family: Family, teacher_config: PreTrainedConfig, teacher: ModelSize, size: ModelSize
) -> str:
    sides = size.shape.sides
    flags: dict[str, object] = {
        "--teacher": config.teacher,
        "--arch": arch_of(teacher_config.model_type),
        "--width": size.shape.width,
    }
    flags |= {f"--{side}-layers": sizes.layers for side, sizes in sides.items()}
    if isinstance(family, EncoderFamily):
        flags |= _ENCODER_TASKS[family.head_kind(teacher_config, config.teacher)]
    flags |= {
        "--init": "truncate" if _inside(size, teacher) else "random",
        "--criterion": "cka_kd",
        "--max-tokens": config.max_tokens,
        "--lr": "5e-4",
        "--max-epoch": 10,
        "--save-dir": f"runs/{size_name(size)}",
    }
    return shlex.join(["cktk-train", config.data, *(str(part) for flag in flags.items() for part in flag)])


def _inside(size: ModelSize, teacher: ModelSize) -> bool:
    """Whether every matrix of the student is a part of one of the teacher's, as --init truncate needs it."""
    return all(
        sizes.ffn_width <= teacher.shape.sides[side].ffn_width
        and size.shape.attention_width(side) <= teacher.shape.attention_width(side)
        for side, sizes in size.shape.sides.items()
    )
