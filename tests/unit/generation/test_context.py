"""Output for sentences of documents: lines, rounds, and what is taken off again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cktk.data.context_config import InputConfig
from cktk.data.framing import Context, Frame
from cktk.errors import ConfigError
from cktk.generation.context import Beginning, ContextualSearch
from cktk.generation.lines import Lines
from cktk.hub import student
from cktk.protocols import Hypothesis, Template
from tests.unit.generation.students import save_student

SEP = 9
TARGET = Frame(template=Template((50,), (2,)), room=12, separator=SEP)
SOURCE = Frame(template=Template((0,), (2,)), room=8, separator=SEP)


def lines_of(kind: str, texts: Sequence[Sequence[int] | None], size: int = 2) -> Lines:
    found = Lines(SOURCE, Context(size, SEP, kind))  # type: ignore[arg-type]
    found.add(texts)
    return found


def test_lines_have_those_of_their_document_before_them() -> None:
    lines = lines_of("none", [[4], [5, 6], [7], None, [8], [10] * 5, [11] * 3])
    assert [lines.earlier(number) for number in range(7)] == [0, 1, 2, 0, 0, 1, 0]
    assert lines.source_ids(2).tolist() == [0, 4, SEP, 5, 6, SEP, 7, 2]
    assert lines.source_ids(4).tolist() == [0, 8, 2]
    assert [lines.is_blank(number) for number in range(7)] == [False] * 3 + [True] + [False] * 3


def test_lines_may_come_in_parts() -> None:
    texts: list[list[int] | None] = [[4], [5, 6], None, [7], [8], [10], [11] * 9]
    whole, parts = lines_of("none", texts), Lines(SOURCE, Context(2, SEP))
    for start, stop in ((0, 1), (1, 4), (4, 6), (6, 7)):
        for number in parts.add(texts[start:stop]):
            assert parts.source_ids(number).tolist() == whole.source_ids(number).tolist()
    assert parts.is_cut(6) and not parts.is_cut(5)
    assert len(parts._kept) <= 3
    assert Lines(SOURCE, None).add(texts) == range(7)


class Searches:
    """Gives each row its number as its only token, behind what it has to begin with, and notes what was asked."""

    def __init__(self, *between: int) -> None:
        self.asked: list[dict[int, Beginning]] = []
        self._between = between

    def __call__(self, numbers: Sequence[int], beginnings: Sequence[Beginning]) -> list[list[Hypothesis]]:
        self.asked.append(dict(zip(numbers, beginnings, strict=True)))
        return [
            [Hypothesis((*(beginning.ids or ()), *self._between, 60 + number, 2), 0.5), Hypothesis((1,), 0.1)]
            for number, beginning in zip(numbers, beginnings, strict=True)
        ]


def test_given_context_is_the_outputs_before() -> None:
    lines = lines_of("given", [[4], [5], [6], None, [7], [8]])
    search, outputs = Searches(), ContextualSearch(TARGET, Context(2, SEP, "given"), {2, 50})
    found = outputs(lines, [0, 1, 2, 4, 5], [None, [40], None, None, None], search)
    # Documents go side by side, sentences of one document one after the other.
    assert [sorted(asked) for asked in search.asked] == [[0, 4], [1, 5], [2]]
    assert search.asked[0][0] == Beginning(None, 0)
    assert search.asked[1][1] == Beginning((50, 60, SEP, 40), 2)
    assert search.asked[2][2] == Beginning((50, 60, SEP, 40, 61, SEP), 5)
    # The context is taken off, what the user asked for stays.
    assert [best[0].tokens for best in found] == [(60, 2), (50, 40, 61, 2), (50, 62, 2), (64, 2), (50, 65, 2)]


def test_given_context_goes_back_as_far_as_there_is_room_and_on_into_the_next_part() -> None:
    lines = Lines(Frame(template=Template((0,), (2,)), room=40, separator=SEP), Context(4, SEP, "given"))
    search, outputs = Searches(), ContextualSearch(TARGET, Context(4, SEP, "given"), {2, 50})
    for _ in range(3):
        numbers = lines.add([[4, 4, 4, 4, 4]] * 2)
        outputs(lines, numbers, None, search)
    # Of 12 tokens a text as long as the source takes 5: 7 are left, which three outputs of 2 tokens keep to.
    assert [asked[number].context for asked in search.asked for number in asked] == [0, 2, 4, 6, 6, 6]
    assert len(outputs.known) <= 6 and search.asked[-1][5].ids == (50, 62, SEP, 63, SEP, 64, SEP)


def test_a_blank_row_between_is_an_empty_sentence() -> None:
    class Blank(Lines):
        def earlier(self, number: int) -> int:
            return number

    lines = Blank(SOURCE, Context(2, SEP, "given"))
    lines.add([[4], [5], [6]])
    search, outputs = Searches(), ContextualSearch(TARGET, Context(2, SEP, "given"), {2})
    outputs(lines, [0, 2], None, search)
    assert [sorted(asked) for asked in search.asked] == [[0], [2]]
    assert search.asked[1][2].ids == (50, 60, SEP, SEP)


def test_generated_context_is_cut_off_at_the_last_separator() -> None:
    lines = lines_of("generated", [[4], [5]])
    outputs = ContextualSearch(TARGET, Context(2, SEP, "generated"), {2})
    found = outputs(lines, [0, 1], None, Searches(30, SEP, 31, SEP))
    assert [best[0].tokens for best in found] == [(60, 2), (61, 2)] and found[0][1].tokens == (1,)
    with pytest.raises(ConfigError, match="--prefix cannot stand behind context that is generated"):
        outputs(lines, [0], [[4]], Searches())


TEXTS = ["a b c", "d e", "f", "", "g h", "i j k l", "m"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_student(tmp_path_factory.mktemp("student") / "small")


def opened(folder: Path, **inputs: Any) -> Any:
    return student(folder, device="cpu", beam=2, max_len_b=6, inputs=InputConfig(**inputs))


@pytest.mark.parametrize("kind", ["none", "given", "generated"])
def test_windows_of_lines_are_translated_as_the_whole(folder: Path, kind: str) -> None:
    shown = {"context_size": 2, "context_target": kind, "context_separator": "▁t", "source_prompt": "a s "}
    whole = opened(folder, **shown).translate_nbest(TEXTS)
    translator = opened(folder, **shown)
    reader, parts = translator.reader(), []
    for start, stop in ((0, 2), (2, 3), (3, 7)):
        parts += reader.translate_nbest(TEXTS[start:stop])
    assert [[one.text for one in found] for found in parts] == [[one.text for one in found] for found in whole]
    assert [found[0].score for found in parts] == pytest.approx([found[0].score for found in whole], abs=1e-5)
    assert [found[0].text == "" for found in whole][3] and translator.counts.empty == 1


def test_lines_with_prompt_and_context_are_the_text_put_together(folder: Path) -> None:
    plain = opened(folder)
    together = ["a s a b c", "a s a b c t d e", "a s a b c t d e t f", "", "a s g h", "a s g h t i j k l"]
    shown = opened(folder, context_size=2, context_separator="▁t", source_prompt="a s ")
    assert shown.translate(TEXTS[:6]) == plain.translate(together)
    assert shown.translate(TEXTS[:3]) != plain.translate(TEXTS[:3])


def test_given_context_begins_the_search(folder: Path) -> None:
    """What is forced is what the model said before, with the separator behind it, and takes no part of the output."""
    shown = opened(folder, context_size=1, context_separator="▁t", context_target="given")
    first, second = shown.translate(TEXTS[:2])
    plain = student(folder, device="cpu", beam=2, max_len_b=6 + len(first.split()) + 1)
    (forced,) = plain.translate(["a b c t d e"], [f"{first} t"])
    assert forced.removeprefix(f"{first} t").strip() == second
    assert shown.counts.sentences == 2


@pytest.mark.parametrize("beam", [1, 2])
def test_the_shortest_output_counts_without_context(tmp_path: Path, beam: int) -> None:
    """A student that would end at once writes its three words behind context of five as well."""
    path = save_student(tmp_path / "hasty")
    hasty = student(path, device="cpu", beam=beam, min_len=3, max_len_b=6)
    hasty.model.final_logits_bias[0, 2] = 50.0
    start = hasty.start
    for context in (0, 5):
        (found,) = hasty._search.generate(
            [[0, 5, 6, 2]], prefixes=[[0, 4, 5, 6, 7][:context] or None], context=[context],
            forced_bos=start.forced_bos, decoder_start=start.token,
        )  # fmt: skip
        assert len(found[0].tokens) == context + 3 + 1


def test_what_cannot_be_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="tokens of --source-prompt"):
        long = InputConfig(source_prompt="a b c d ")
        student(folder, device="cpu", max_source_positions=6, inputs=long).translate(["a"])
    with pytest.raises(ConfigError, match=r"\{target\} stands for a language"):
        opened(folder, source_prompt="{target}: ").translate(["a"])
    named = student(
        folder, device="cpu", beam=2, max_len_b=6, target_lang="b", inputs=InputConfig(source_prompt="{target} c ")
    )
    assert named.translate(["a"]) == opened(folder, source_prompt="b c ").translate(["a"])
