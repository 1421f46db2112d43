from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from transformers import BartConfig

from cktk.architectures.vocabulary import Vocabulary, check_student, check_vocabularies, folder_vocabulary
from cktk.errors import ConfigError
from tests.unit.architectures.test_loading import make_tokenizer

TOKENS = {"<s>": 0, "<pad>": 1, "w": 2}


def test_equal_fingerprints_settle_it() -> None:
    def unread() -> dict[str, int]:
        raise AssertionError("the tokenizer was read")

    check_vocabularies(Vocabulary("teacher", 5, "aa", unread), Vocabulary("data", 5, "aa", unread))
    check_vocabularies(Vocabulary("teacher", 64, "aa"), Vocabulary("data", 5, "aa"))  # padded embeddings


def test_tokenizers_saved_differently_are_compared_token_by_token() -> None:
    teacher = Vocabulary("teacher t", 4, "aa", lambda: TOKENS)
    check_vocabularies(teacher, Vocabulary("data d", 3, "bb", lambda: dict(reversed(TOKENS.items()))))
    check_vocabularies(
        Vocabulary("teacher t", 4, "aa", lambda: {**TOKENS, "<mask>": 3}), Vocabulary("d", 3, None, lambda: TOKENS)
    )
    with pytest.raises(ConfigError, match=r"^token 'w' is id 1 in data d but id 2 in teacher t: preprocess"):
        check_vocabularies(teacher, Vocabulary("data d", 3, "bb", lambda: {"<s>": 0, "w": 1, "<pad>": 2}))
    with pytest.raises(ConfigError, match=r"token 'v' is id 2 in data d but unknown in teacher t"):
        check_vocabularies(teacher, Vocabulary("data d", 3, None, lambda: {"<s>": 0, "<pad>": 1, "v": 2}))


def test_sizes_decide_where_a_tokenizer_is_not_known() -> None:
    check_vocabularies(Vocabulary("teacher t", 3, None, lambda: None), Vocabulary("data d", 3, "aa", lambda: TOKENS))
    with pytest.raises(ConfigError, match=r"^data d has a vocabulary of 250027 ids, teacher t one of 250054"):
        check_vocabularies(Vocabulary("teacher t", 250_054), Vocabulary("data d", 250_027, "aa"))
    with pytest.raises(ConfigError, match="different tokenizers of the same size"):
        check_vocabularies(Vocabulary("teacher t", 3, "aa"), Vocabulary("data d", 3, "bb"))


def test_data_with_more_ids_than_the_teacher_has_rows() -> None:
    with pytest.raises(ConfigError, match="data d has a vocabulary of 4 ids, teacher t one of 3"):
        check_vocabularies(Vocabulary("teacher t", 3, "aa"), Vocabulary("data d", 4, "aa"))


def test_vocabularies_of_folders(tmp_path: Path) -> None:
    make_tokenizer().save_pretrained(tmp_path / "teacher")
    shutil.copytree(tmp_path / "teacher", tmp_path / "same")
    shutil.copytree(tmp_path / "teacher", tmp_path / "reformatted")
    (tmp_path / "reformatted" / "tokenizer.json").write_text(
        (tmp_path / "teacher" / "tokenizer.json").read_text() + "\n"
    )
    (tmp_path / "empty").mkdir()

    teacher = folder_vocabulary("teacher", tmp_path / "teacher", 41)
    assert teacher.fingerprint == folder_vocabulary("", tmp_path / "same", 41).fingerprint
    assert teacher.fingerprint != folder_vocabulary("", tmp_path / "reformatted", 41).fingerprint
    check_vocabularies(teacher, folder_vocabulary("data", tmp_path / "same", 41))
    check_vocabularies(teacher, folder_vocabulary("data", tmp_path / "reformatted", 41))
    check_vocabularies(folder_vocabulary("teacher", tmp_path / "empty", 41), teacher)
    swapped = (
        (tmp_path / "teacher" / "tokenizer.json")
        .read_text()
        .replace('"w7": 11', '"w7": 40')
        .replace('"w36": 40', '"w36": 11')
    )
    (tmp_path / "reformatted" / "tokenizer.json").write_text(swapped)
    other = folder_vocabulary("teacher", tmp_path / "reformatted", 41)
    with pytest.raises(
        ConfigError, match=r"token 'w(7' is id 11 in data but id 40|36' is id 40 in data but id 11) in teacher"
    ):
        check_vocabularies(other, folder_vocabulary("data", tmp_path / "same", 41))


def test_student_and_teacher_have_the_same_rows() -> None:
    check_student(BartConfig(vocab_size=7), BartConfig(vocab_size=7, d_model=8))
    with pytest.raises(ConfigError, match="student has a vocabulary of 7 ids, the teacher one of 8"):
        check_student(BartConfig(vocab_size=7), BartConfig(vocab_size=8))
