"""What decoding computes with, by PyTorch and by our own kernels, against naive references in fp64."""

from __future__ import annotations

import platform
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cktk.errors import ConfigError
from cktk.generation.logits import NEVER, best_columns
from cktk.generation.operators import kernels
from cktk.generation.operators.choice import check_int8, choose_operators
from cktk.generation.operators.contract import Activation, Operators, gelu_tanh
from cktk.generation.operators.dense import DenseOperators
from cktk.generation.operators.int8 import Int8Operators

CPU = torch.device("cpu")
ACTIVATIONS: list[Activation | None] = [None, F.relu, F.gelu, gelu_tanh, F.silu, torch.tanh]


def own(*, int8: bool, amx: bool = False) -> Operators:
    """Our kernels; skips where this machine has none, or no such instructions."""
    library = kernels.library()
    if library is None or (amx and not library.amx):
        pytest.skip("this machine cannot run the kernels")
    found = kernels.KernelOperators(library, int8=int8)
    return found if not int8 else kernels.KernelOperators(kernels.Library(library.compiled, amx=amx), int8=True)


FLOAT: dict[str, Callable[[], Operators]] = {"torch": DenseOperators, "kernels": lambda: own(int8=False)}
INT8: dict[str, Callable[[], Operators]] = {
    "onednn": Int8Operators,
    "vnni": lambda: own(int8=True),
    "amx": lambda: own(int8=True, amx=True),
}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rounded(x: Tensor) -> Tensor:
    """Rows on a grid of 127 steps up to their largest value."""
    step = x.double().abs().amax(dim=1, keepdim=True).float().double() / 127
    return torch.where(step > 0, (x.double() / step).round() * step, 0.0)


def product_case(rows: int, size: int, out: int, bias: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    draw = generator(rows + size)
    weight, x = torch.randn(out, size, generator=draw) / size**0.5, 3 * torch.randn(rows, size, generator=draw)
    weight[out // 2], x[1:2] = 0.0, 0.0
    return weight, x, torch.randn(out, generator=draw) if bias else None


@pytest.mark.parametrize("rows", [1, 2, 12, 13, 17, 100])
@pytest.mark.parametrize(("size", "out"), [(16, 24), (67, 45), (128, 96)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", FLOAT)
def test_product(kind: str, rows: int, size: int, out: int, bias: bool) -> None:
    weight, x, added = product_case(rows, size, out, bias)
    expected = F.linear(x.double(), weight.double(), None if added is None else added.double())
    linear = FLOAT[kind]().linear(weight, added)
    assert linear.features == (size, out)
    torch.testing.assert_close(linear(x).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 2, 12, 13, 17, 100])
@pytest.mark.parametrize(("size", "out"), [(16, 24), (67, 45), (128, 96)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", INT8)
def test_product_of_rounded_numbers(kind: str, rows: int, size: int, out: int, bias: bool) -> None:
    weight, x, added = product_case(rows, size, out, bias)
    expected = rounded(x) @ rounded(weight).t() + (0.0 if added is None else added.double())
    linear = INT8[kind]().linear(weight, added)
    assert linear.features == (size, out)
    found = linear(x)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    exact = DenseOperators().linear(weight, added)(x)
    assert 0 < (found - exact).abs().max() < 0.03 * exact.abs().max()


@pytest.mark.parametrize("number", range(len(ACTIVATIONS)))
@pytest.mark.parametrize("kind", [*FLOAT, *INT8])
def test_activations(kind: str, number: int) -> None:
    """A product with the identity, so that every value is met from -30 to 30."""
    activation = ACTIVATIONS[number]
    x = torch.linspace(-30, 30, 32 * 64).view(-1, 32)
    operators = {**FLOAT, **INT8}[kind]()
    plain = operators.linear(torch.eye(32), None)(x)
    found = operators.linear(torch.eye(32), None, activation)(x)
    expected = plain.double() if activation is None else activation(plain.double())
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("kind", ["kernels", *INT8])
def test_a_row_does_not_depend_on_the_rows_beside_it(kind: str) -> None:
    draw = generator(2)
    x = torch.randn(37, 96, generator=draw) * torch.logspace(-3, 3, 37)[:, None]
    linear = {**FLOAT, **INT8}[kind]().linear(torch.randn(80, 96, generator=draw), None)
    assert torch.equal(torch.cat([linear(row[None]) for row in x]), linear(x))
    assert torch.equal(linear(x[[4, 1]]), linear(x)[[4, 1]])


@pytest.mark.parametrize("kind", ["kernels", "vnni", "amx"])
def test_threads_change_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough work for threads to be used."""
    draw, operators = generator(3), {**FLOAT, **INT8}[kind]()
    weight, x = torch.randn(1000, 512, generator=draw), torch.randn(200, 512, generator=draw)
    cache, query = torch.randn(2, 64, 4, 40, 32, generator=draw), torch.randn(256, 128, generator=draw)
    found = []
    for threads in (1, 2):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        tiles, maxima = torch.empty(3, 200, 352), torch.empty(3, 200)
        head = operators.tiles(F.pad(weight, (0, 0, 0, 56)).view(3, 352, 512), None, 1000)
        normaliser = head(x, tiles, maxima)
        found.append((operators.linear(weight, None)(x), operators.attend(query, cache, None), tiles, normaliser))
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


@pytest.mark.parametrize("kind", FLOAT)
@pytest.mark.parametrize("width", [5, 16, 96])
@pytest.mark.parametrize("residual", [False, True])
def test_norms(kind: str, width: int, residual: bool) -> None:
    draw = generator(4)
    x, added = 5 + 3 * torch.randn(7, width, generator=draw), torch.randn(7, width, generator=draw)
    weight, bias = torch.randn(2, width, generator=draw)
    given, whole = (added, x.double() + added.double()) if residual else (None, x.double())
    layer = F.layer_norm(whole, (width,), weight.double(), bias.double(), 1e-5)
    torch.testing.assert_close(FLOAT[kind]().norm(weight, bias, 1e-5)(x, given).double(), layer, rtol=1e-5, atol=1e-5)
    rms = F.rms_norm(whole, (width,), weight.double(), 1e-6)
    torch.testing.assert_close(FLOAT[kind]().norm(weight, None, 1e-6)(x, given).double(), rms, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [*FLOAT, *INT8])
@pytest.mark.parametrize("columns", [1, 32, 33, 130])
@pytest.mark.parametrize("bias", [False, True])
def test_tiles(kind: str, columns: int, bias: bool) -> None:
    """Five tiles of 32 columns: a part of the last one, or several, may be without tokens."""
    draw = generator(5)
    weight = torch.zeros(160, 48)
    weight[:columns] = torch.randn(columns, 48, generator=draw)
    added = torch.randn(160, generator=draw) if bias else None
    operators = {**FLOAT, **INT8}[kind]()
    head = operators.tiles(weight.view(5, 32, 48), None if added is None else added.view(5, 32), columns)
    for rows in (3, 20):
        states = torch.randn(rows, 48, generator=draw)
        tiles, maxima = torch.full((5, rows, 32), torch.nan), torch.full((5, rows), torch.nan)
        normaliser = head(states, tiles, maxima)
        exact = kind in FLOAT
        x, w = (states.double(), weight.double()) if exact else (rounded(states), rounded(weight))
        expected = (x @ w.t() + (0.0 if added is None else added.double()))[:, :columns]
        flat = tiles.transpose(0, 1).flatten(1)
        torch.testing.assert_close(flat[:, :columns].double(), expected, rtol=1e-5, atol=1e-5)
        assert bool((flat[:, columns:] == NEVER).all())
        assert torch.equal(maxima, tiles.amax(dim=2))
        torch.testing.assert_close(normaliser.double(), expected.logsumexp(dim=1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", range(8))
def test_the_best_by_kernels_are_those_by_torch(seed: int) -> None:
    """Logits are all different, some -inf: where there are too few, scores are -inf and places valid."""
    draw = generator(seed)
    batch, beams, count, width = 3, 1 + seed % 4, 3, 32
    size = batch * beams * count * width
    tiles = torch.randperm(size, generator=draw).float().view(count, -1, width)
    tiles[torch.rand(tiles.shape, generator=draw) < 0.9] = NEVER
    maxima, offsets = tiles.amax(dim=2), 100 * torch.rand(batch, beams, generator=draw)
    for wanted in (1, 8, min(kernels.MANY - 1, beams * count * width), beams * count * width):
        scores, parents, columns = own(int8=False).best(tiles, maxima, offsets, wanted)
        expected = best_columns(tiles, maxima, offsets, wanted)
        assert torch.equal(scores, expected[0])
        known = scores > NEVER
        assert torch.equal(parents[known], expected[1][known]) and torch.equal(columns[known], expected[2][known])
        assert bool((parents < beams).all()) and bool((columns < count * width).all())


def test_the_first_of_equal_logits_is_the_best_and_nan_never() -> None:
    tiles = torch.zeros(2, 2, 32)
    tiles[1] = torch.nan
    scores, parents, columns = own(int8=False).best(tiles, tiles.amax(dim=2), torch.zeros(1, 2), 3)
    assert scores.tolist() == [[0.0, 0.0, 0.0]]
    assert parents.tolist() == [[0, 0, 0]]
    assert columns.tolist() == [[0, 1, 2]]


def naive_attention(query: Tensor, cache: Tensor, mask: Tensor | None) -> Tensor:
    keys, values = cache.double()
    batch, heads, _, width = keys.shape
    queries = query.double().view(batch, -1, heads, width).transpose(1, 2)
    scores = queries @ keys.transpose(2, 3) + (0.0 if mask is None else mask.double())
    return (scores.softmax(dim=-1) @ values).transpose(1, 2).reshape(len(query), heads * width)


def random_mask(shape: tuple[int, ...], draw: torch.Generator) -> Tensor:
    """Finite where a slot is seen; every query sees one at least."""
    mask = torch.randn(shape, generator=draw)
    mask[torch.rand(shape, generator=draw) < 0.5] = NEVER
    mask[..., 0] = 0.5
    return mask


@pytest.mark.parametrize("kind", FLOAT)
@pytest.mark.parametrize("width", [4, 16, 24, 40, 64, 72])
@pytest.mark.parametrize("slots", [1, 17, 50])
@pytest.mark.parametrize("form", ["none", "source", "beams", "heads", "all"])
def test_attention(kind: str, width: int, slots: int, form: str) -> None:
    draw = generator(width * slots)
    batch, heads, beams = 2, 3, 4
    shapes = {
        "source": (batch, 1, 1, slots), "beams": (batch, 1, beams, slots), "heads": (batch, heads, 1, slots),
        "all": (batch, heads, beams, slots),
    }  # fmt: skip
    mask = random_mask(shapes[form], draw) if form in shapes else None
    cache = torch.randn(2, batch, heads, slots, width, generator=draw)
    query = torch.randn(batch * beams, heads * width, generator=draw)
    found = FLOAT[kind]().attend(query, cache, mask)
    torch.testing.assert_close(found.double(), naive_attention(query, cache, mask), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", FLOAT)
def test_attention_appends_first(kind: str) -> None:
    draw = generator(6)
    batch, heads, beams, width, used, capacity = 2, 3, 4, 8, 9, 20
    cache = torch.randn(2, batch, heads, capacity, width, generator=draw)
    before = cache.clone()
    mixed = torch.randn(batch * beams, 3 * heads * width, generator=draw)
    mask = random_mask((batch, 1, beams, used + beams), draw)
    found = FLOAT[kind]().append_and_attend(mixed, cache, (used, used + beams), mask)
    fresh = mixed.view(batch, beams, 3, heads, width)[:, :, 1:].permute(2, 0, 3, 1, 4)
    expected = torch.cat([before[:, :, :, :used], fresh, before[:, :, :, used + beams :]], dim=3)
    assert torch.equal(cache, expected)
    reference = naive_attention(mixed[:, : heads * width], cache[:, :, :, : used + beams], mask)
    torch.testing.assert_close(found.double(), reference, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", FLOAT)
def test_slots_move_to_the_beginning(kind: str) -> None:
    cache = torch.randn(2, 2, 3, 7, 4, generator=generator(7))
    before, slots = cache.clone(), torch.tensor([[0, 2, 3, 6], [1, 2, 4, 5]])
    FLOAT[kind]().keep_slots(cache, slots)
    for sentence in range(2):
        assert torch.equal(cache[:, sentence, :, :4], before[:, sentence, :, slots[sentence]])


def test_choice() -> None:
    own(int8=False)
    assert isinstance(choose_operators(CPU, torch.float32, int8=False), kernels.KernelOperators)
    assert isinstance(choose_operators(CPU, torch.float32, int8=True), kernels.KernelOperators)
    assert type(choose_operators(CPU, torch.bfloat16, int8=False)) is DenseOperators
    assert type(choose_operators(torch.device("meta"), torch.float32, int8=False)) is DenseOperators


@pytest.mark.parametrize("kind", ["kernels", "vnni", "amx"])
def test_nan_is_not_hidden(kind: str) -> None:
    """A student that has diverged must not look healthy."""
    operators, draw = {**FLOAT, **INT8}[kind](), generator(8)
    x = torch.randn(20, 48, generator=draw)
    x[3, 5] = torch.nan
    for activation in (None, F.relu, F.gelu, gelu_tanh, F.silu):
        found = operators.linear(torch.randn(40, 48, generator=draw), None, activation)(x)
        assert bool(found[3].isnan().all()) and not bool(found[:3].isnan().any() or found[4:].isnan().any())
    assert bool(operators.norm(torch.ones(48), torch.zeros(48), 1e-5)(x)[3].isnan().all())
    tiles, maxima = torch.empty(2, 20, 32), torch.empty(2, 20)
    normaliser = operators.tiles(torch.randn(2, 32, 48, generator=draw), None, 50)(x, tiles, maxima)
    assert normaliser.isnan().nonzero().tolist() == [[3]]
    cache = torch.randn(2, 1, 1, 9, 48, generator=draw)
    cache[0, 0, 0, 4, 7] = torch.nan
    assert bool(operators.attend(torch.randn(2, 48, generator=draw), cache, None).isnan().all())


def kernels_in(folder: Path, content: bytes | None, monkeypatch: pytest.MonkeyPatch) -> kernels.Library | None:
    monkeypatch.setattr(kernels, "__file__", str(folder / "kernels.py"))
    if content is not None:
        (folder / f"_kernels{sysconfig.get_config_var('EXT_SUFFIX')}").write_bytes(content)
    found: kernels.Library | None = kernels.library.__wrapped__()
    return found


@pytest.mark.parametrize(("content", "words"), [(None, "were not compiled"), (b"damaged", "cannot be loaded")])
def test_kernels_that_are_not_there(
    content: bytes | None,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for able, warnings in ((False, 0), (True, 1)):
        monkeypatch.setattr(kernels, "_could_run", lambda able=able: able)
        assert kernels_in(tmp_path, content, monkeypatch) is None
        assert len(caplog.messages) == warnings
    assert words in caplog.text and "install cktk once more" in caplog.text
    monkeypatch.setenv("CKTK_KERNELS", "0")
    assert kernels.library.__wrapped__() is None
    assert len(caplog.messages) == 1


def test_kernels_of_another_version_are_left_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    own(int8=False)
    monkeypatch.setattr(kernels, "VERSION", 0)
    assert kernels.library.__wrapped__() is None
    assert "are those of another version of cktk" in caplog.text


def test_other_devices_are_refused() -> None:
    with pytest.raises(ConfigError, match="--quantization int8 works on a CPU, and the device is meta"):
        check_int8(torch.device("meta"))


def test_kernels_are_there_where_they_can_be() -> None:
    """Else the tests above would be skipped, and everything would be slow, without a word."""
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    if platform.machine() != "x86_64" or "avx512_vnni" not in flags or shutil.which("g++") is None:
        pytest.skip("no compiler, or no AVX-512 VNNI")
    library = kernels.library()
    assert library is not None, "reinstall cktk: pip install -c constraints.txt -e ."
    assert library.amx == ("amx_int8" in flags)
