"""What a ``tokenizer.json`` holds, and the same with fewer tokens; pure functions of its parsed content."""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from tokenizers import pre_tokenizers

from cktk.data.tokenization.vocabulary_map import VocabularyMap

#: The kinds of models whose tokens can be dropped.
MODELS = ("Unigram", "BPE", "WordPiece")

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")

Json = dict[str, Any]


def tokens_of(raw: Json) -> dict[str, int]:
    """All tokens and their ids, those added to the model's own included."""
    vocab = raw["model"]["vocab"]
    own = {entry[0]: index for index, entry in enumerate(vocab)} if isinstance(vocab, list) else dict(vocab)
    return {**own, **{token["content"]: token["id"] for token in raw["added_tokens"]}}


def _names(raw: Json) -> dict[int, str]:
    """The token of each id; a Unigram model may have one under two ids."""
    vocab = raw["model"]["vocab"]
    own = {index: entry[0] for index, entry in enumerate(vocab)} if isinstance(vocab, list) else {}
    return {**own, **{index: token for token, index in tokens_of(raw).items()}}


def fixed_ids(raw: Json, optional: Collection[str] = ()) -> set[int]:
    """The ids without which the tokenizer would not work as before, or not on every text.

    Added tokens but the ``optional`` ones, the unknown and the pad token, those of templates, and all bytes. A Unigram
    model also keeps its lowest score: from this it reckons what an unknown character costs.
    """
    model, tokens = raw["model"], tokens_of(raw)
    ids = {token["id"] for token in raw["added_tokens"] if token["content"] not in optional}
    ids |= set(_template_ids(raw["post_processor"]))
    if raw["padding"]:
        ids.add(raw["padding"]["pad_id"])
    if model["type"] == "Unigram":
        ids.add(min(range(len(model["vocab"])), key=lambda index: model["vocab"][index][1]))
        ids |= set() if model["unk_id"] is None else {model["unk_id"]}
    elif model["unk_token"] in tokens:
        ids.add(tokens[model["unk_token"]])
    if model.get("byte_fallback"):
        ids |= {index for token, index in tokens.items() if _BYTE.fullmatch(token)}
    if _has_byte_level(raw):
        ids |= {tokens[sign] for sign in pre_tokenizers.ByteLevel.alphabet() if sign in tokens}
    return ids


def single_characters(raw: Json, ids: Iterable[int]) -> set[int]:
    """The tokens that are one character, for all characters in the tokens ``ids``: unknown words fall back on these."""
    tokens, names = tokens_of(raw), _names(raw)
    prefix, suffix = _affixes(raw)
    characters = {sign for index in ids for sign in names[index]}
    forms = {f"{before}{sign}{after}" for sign in characters for before in ("", prefix) for after in ("", suffix)}
    return {tokens[form] for form in forms if form in tokens}


def merge_parts(raw: Json, ids: Collection[int]) -> dict[int, set[int]]:
    """For each of ``ids`` the tokens that a BPE model goes through on its way to it; empty for other models.

    No merge crosses the borders of a token that remains in the end, and inside of them merges do not see what is
    around: the way to a token is what the model does with this token alone.
    """
    model = raw["model"]
    if model["type"] != "BPE":
        return {}
    prefix, suffix = _affixes(raw)
    ranks = {merge: rank for rank, merge in enumerate(_merges(model))}
    vocab = model["vocab"]
    return {
        index: {vocab[part] for part in _way(_symbols(token, prefix, suffix), ranks, prefix) if part in vocab}
        for token, index in vocab.items()
        if index in ids
    }


def trimmed(raw: Json, vocabulary: VocabularyMap) -> Json:
    """The same tokenizer with the tokens of ``vocabulary`` alone, at their new ids. Scores and merges stay."""
    made = copy.deepcopy({name: part for name, part in raw.items() if name != "model"})
    model = made["model"] = dict(raw["model"])  # its vocabulary, which may be large, is made anew
    if isinstance(model["vocab"], list):
        model["vocab"] = [entry for index, entry in enumerate(model["vocab"]) if index in vocabulary]
        if model["unk_id"] is not None:
            model["unk_id"] = _new(vocabulary, model["unk_id"])
    else:
        kept = {token: index for token, index in model["vocab"].items() if index in vocabulary}
        model["vocab"] = {token: _new(vocabulary, index) for token, index in sorted(kept.items(), key=lambda t: t[1])}
    if model["type"] == "BPE":
        prefix, _ = _affixes(raw)
        model["merges"] = [[a, b] for a, b in _merges(model) if {a, b, _joined(a, b, prefix)} <= model["vocab"].keys()]
    made["added_tokens"] = [
        {**token, "id": _new(vocabulary, token["id"])} for token in made["added_tokens"] if token["id"] in vocabulary
    ]
    _move_template(made["post_processor"], vocabulary)
    if made["padding"]:
        made["padding"]["pad_id"] = _new(vocabulary, made["padding"]["pad_id"])
    return made


def trimmed_settings(settings: Json, vocabulary: VocabularyMap, dropped: Collection[str]) -> Json:
    """``tokenizer_config.json`` for the trimmed tokenizer, without mention of the tokens ``dropped``."""
    made: Json = {
        name: [token for token in value if _content(token) not in dropped] if isinstance(value, list) else value
        for name, value in settings.items()
    }
    if "added_tokens_decoder" in made:
        made["added_tokens_decoder"] = {
            str(_new(vocabulary, int(index))): token
            for index, token in made["added_tokens_decoder"].items()
            if int(index) in vocabulary
        }
    return made


def _content(token: Any) -> Any:
    return token["content"] if isinstance(token, dict) else token


def _new(vocabulary: VocabularyMap, index: int) -> int:
    return int(vocabulary.to_new(index))


def _affixes(raw: Json) -> tuple[str, str]:
    """What marks a token inside of a word (``##``) and at its end (``</w>``)."""
    model = raw["model"]
    return model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""


def _merges(model: Json) -> list[tuple[str, str]]:
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
    return [(left, right) for left, right in pairs]


def _joined(left: str, right: str, prefix: str) -> str:
    return left + right.removeprefix(prefix)


def _symbols(token: str, prefix: str, suffix: str) -> list[str]:
    """The single characters that ``token`` is made of, each with the marks that it has in its place."""
    inner, end = (token.removesuffix(suffix), suffix) if suffix and token.endswith(suffix) else (token, "")
    start = prefix if prefix and inner.startswith(prefix) else ""
    signs = list(inner.removeprefix(start))
    if not signs:
        return [token]
    symbols = [start + signs[0], *(prefix + sign for sign in signs[1:])]
    return [*symbols[:-1], symbols[-1] + end]


def _way(symbols: list[str], ranks: dict[tuple[str, str], int], prefix: str) -> Iterator[str]:
    """All tokens on the way from ``symbols`` by merges, best rank first and leftmost first among equals."""
    yield from symbols
    while True:
        pairs = [
            (ranks[pair], at) for at in range(len(symbols) - 1) if (pair := (symbols[at], symbols[at + 1])) in ranks
        ]
        if not pairs:
            return
        _, at = min(pairs)
        symbols = [*symbols[:at], _joined(symbols[at], symbols[at + 1], prefix), *symbols[at + 2 :]]
        yield symbols[at]


def _has_byte_level(part: Any) -> bool:
    """Whether the tokenizer spells text as bytes, each by one of 256 characters."""
    parts = [part.get(name) for name in ("normalizer", "pre_tokenizer")] if "model" in part else [part]
    for component in filter(None, parts):
        inner = [*component.get("normalizers", ()), *component.get("pretokenizers", ())]
        if component["type"] == "ByteLevel" or any(map(_has_byte_level, inner)):
            return True
    return False


def _template_ids(processor: Any) -> Iterator[int]:
    if processor is None:
        return
    for token in processor.get("special_tokens", {}).values():
        yield from token["ids"]
    for end in ("sep", "cls"):
        if end in processor:
            yield processor[end][1]
    for inner in processor.get("processors", ()):
        yield from _template_ids(inner)


def _move_template(processor: Any, vocabulary: VocabularyMap) -> None:
    if processor is None:
        return
    for token in processor.get("special_tokens", {}).values():
        token["ids"] = vocabulary.to_new(token["ids"]).tolist()
    for end in ("sep", "cls"):
        if end in processor:
            processor[end][1] = _new(vocabulary, processor[end][1])
    for inner in processor.get("processors", ()):
        _move_template(inner, vocabulary)
