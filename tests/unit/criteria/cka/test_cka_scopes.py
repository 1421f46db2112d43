"""CKA of scopes "summed" and "running"."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from cktk.criteria.cka.cka import Cka, CkaOptions
from cktk.protocols import ModelOutput
from tests.unit.criteria.pooling import ThreadRanks, alone, assert_equal, cut, gathered, joined, pooled, report
from tests.unit.criteria.states import PAIRS, WIDTHS, centred, naive_alignment, naive_cka, states, with_gradients

SIZES = {"encoder": [15, 1, 10, 6, 0], "decoder": [2, 9, 0, 20, 1]}
UNITS = {"encoder": "source_token", "decoder": "target_token"}


def naive_summed(batches, form: str = "sqrt"):
    """Values and gradients of eq. 4 by autograd: covariances of micro-batches, summed before the norms are taken."""
    leaves = [with_gradients(student) for student, _ in batches]
    values = {}
    for pair in PAIRS:
        sums: list[Tensor | float] = [0.0, 0.0, 0.0]
        for leaf, (_, teacher) in zip(leaves, batches, strict=True):
            s, t = leaf.hidden[pair.side, pair.student], teacher.hidden[pair.side, pair.teacher]
            if len(s) > 1:
                s, t = centred(s), centred(t)
                sums = [x + y / (len(s) - 1) for x, y in zip(sums, (t.T @ s, s.T @ s, t.T @ t), strict=True)]
        k = naive_alignment(*sums)
        values[pair] = 1 - (k if form == "sqrt" else k**2)
    torch.stack(list(values.values())).sum().backward()
    for leaf in leaves:
        for state in leaf.hidden.values():
            state.grad = torch.zeros_like(state) if state.grad is None else state.grad
    return {pair: value.item() for pair, value in values.items()}, joined(leaves)


@pytest.mark.parametrize("form", ["sqrt", "squared"])
def test_summed_is_equation_4(form: str) -> None:
    student, teacher = states({"encoder": 32, "decoder": 32})
    batches = cut(student, teacher, SIZES)
    wanted = naive_summed(batches, form)
    loss = Cka(PAIRS, WIDTHS, CkaOptions("summed", form))
    assert loss.collects == "before"
    assert_equal("cka", pooled(loss, batches), wanted, 1e-10)
    exact = naive_cka(student.hidden["decoder", 1], teacher.hidden["decoder", 3]).item()
    assert abs(wanted[0][PAIRS[3]] - exact) > 1e-3


def test_summed_of_two_ranks() -> None:
    student, teacher = states({"encoder": 32, "decoder": 32})
    batches = cut(student, teacher, SIZES)
    ranks = ThreadRanks(2)
    with ThreadPoolExecutor(2) as pool:
        jobs = [
            pool.submit(pooled, Cka(PAIRS, WIDTHS, CkaOptions("summed")), own, ranks.all_reduce)
            for own in (batches[:2], batches[2:])
        ]
        (found, first), (other, second) = (job.result() for job in jobs)
    assert found == other
    gradients = {key: torch.cat([first[key], second[key]]) for key in first}
    assert_equal("cka", (found, gradients), naive_summed(batches), 1e-10)


def test_summed_of_constant_micro_batches_has_no_variance() -> None:
    student, teacher = states({"encoder": 12, "decoder": 12}, dtype=torch.float32)
    for index, value in enumerate((0.1, -0.1)):  # the means cancel, their rounding does not
        student.hidden["decoder", 1][6 * index : 6 * index + 6] = value
    loss = Cka(PAIRS, WIDTHS, CkaOptions("summed"))
    found, gradients = pooled(loss, cut(student, teacher, {"encoder": [6, 6], "decoder": [6, 6]}))
    assert found["cka/decoder 1<-3"] == 1 and not gradients["decoder", 1].any()


class NaiveRunning:
    """Moving averages with bias correction, written as the sum that they are."""

    def __init__(self, beta: float) -> None:
        self.beta = beta
        self.seen = {pair: [] for pair in PAIRS}

    def advance(self, student: ModelOutput, teacher: ModelOutput) -> None:
        for pair in PAIRS:
            s, t = student.hidden[pair.side, pair.student], teacher.hidden[pair.side, pair.teacher]
            if len(s):
                x, y, n = centred(s), centred(t), len(s)
                self.seen[pair].append((s.mean(0), t.mean(0), y.T @ x / n, x.T @ x / n, y.T @ y / n))

    def average(self, pair) -> list[Tensor]:
        age = len(self.seen[pair])
        weights = [(1 - self.beta) * self.beta ** (age - 1 - i) / (1 - self.beta**age) for i in range(age)]
        return [
            sum(w * v for w, v in zip(weights, moment, strict=True)) for moment in zip(*self.seen[pair], strict=True)
        ]

    def loss(self, pair) -> float:
        return 1 - naive_alignment(*self.average(pair)[2:]).item()

    def gradients(self, student: ModelOutput, teacher: ModelOutput) -> dict:
        """Summed over pairs, times the number of rows: k ((s - mean) M / c^2 - (t - mean) A / a^2)."""
        found = {key: torch.zeros_like(state) for key, state in student.hidden.items()}
        for pair in PAIRS:
            s_mean, t_mean, cross, own, _ = self.average(pair)
            s = student.hidden[pair.side, pair.student] - s_mean
            t = teacher.hidden[pair.side, pair.teacher] - t_mean
            g = s @ own / (own**2).sum() - t @ cross / (cross**2).sum()
            found[pair.side, pair.student] += (1 - self.loss(pair)) * g
        return found


def along(loss: Cka, batches) -> tuple[dict, dict]:
    """One pass over ``batches`` and the advance after it; the value's report, and gradients."""
    leaves = [with_gradients(student) for student, _ in batches]
    shown: dict[str, float] = {}
    for leaf, (_, teacher) in zip(leaves, batches, strict=True):
        value, *sides = loss.terms(leaf, teacher)
        assert value.unit == "update" and value.total.item() == 0 and not value.total.requires_grad
        assert value.value.item() == pytest.approx(len(PAIRS) * value.parts["cka"].item())
        shown["cka"] = value.parts["cka"].item()
        for term in sides:
            assert term.total.item() == 0
            term.total.backward()
            for name, part in term.parts.items():
                shown[name] = shown.get(name, 0.0) + part.item()
        assert [term.unit for term in sides] == [UNITS[layout.side] for layout in loss.layouts]
    loss.advance(gathered(loss, batches))
    return shown, joined(leaves)


def update(seed: int, decoder: int = 24):
    student, teacher = states({"encoder": 20, "decoder": decoder}, seed=seed)
    rest = decoder - decoder // 3
    return student, teacher, cut(student, teacher, {"encoder": [13, 0, 7], "decoder": [decoder // 3, rest, 0]})


@pytest.mark.parametrize("beta", [0.0, 0.6])
def test_running_lags_behind_by_one_update(beta: float) -> None:
    loss = Cka(PAIRS, WIDTHS, CkaOptions("running", momentum=beta)).double()
    naive = NaiveRunning(beta)
    assert loss.collects == "before" and loss.pooled
    student, teacher, batches = update(0)
    exact, _ = pooled(loss, batches)  # the first update is its own
    assert exact["cka/decoder 1<-3"] == pytest.approx(
        naive_cka(student.hidden["decoder", 1], teacher.hidden["decoder", 3]).item(), rel=1e-10
    )
    loss.advance(gathered(loss, batches))
    naive.advance(student, teacher)
    for seed, decoder in ((1, 24), (2, 0), (3, 30)):  # an update without decoder rows does not move that side
        assert loss.collects == "along"
        student, teacher, batches = update(seed, decoder)
        shown, gradients = along(loss, batches)
        assert shown["cka"] == pytest.approx(sum(naive.loss(pair) for pair in PAIRS) / len(PAIRS), rel=1e-10)
        for pair in PAIRS:  # per token: the engine divides by their number
            rows = {"encoder": 20, "decoder": decoder}[pair.side]
            assert shown[f"cka/{pair}"] == pytest.approx(rows * naive.loss(pair), rel=1e-10)
        expected = naive.gradients(student, teacher)
        for key, gradient in gradients.items():
            torch.testing.assert_close(gradient, expected[key], rtol=1e-10, atol=1e-12)
        naive.advance(student, teacher)


def test_running_of_a_standing_distribution_is_exact() -> None:
    loss = Cka(PAIRS, WIDTHS, CkaOptions("running")).double()
    _, _, batches = update(0)
    exact, exact_gradients = pooled(loss, batches)
    for _ in range(3):
        loss.advance(gathered(loss, batches))
    shown, gradients = along(loss, batches)
    assert shown["cka"] == pytest.approx(exact["cka"], rel=1e-10)
    for key, gradient in gradients.items():
        torch.testing.assert_close(gradient / {"encoder": 20, "decoder": 24}[key[0]], exact_gradients[key])


def test_running_solves_once_an_update(monkeypatch: pytest.MonkeyPatch) -> None:
    loss = Cka(PAIRS, WIDTHS, CkaOptions("running")).double()
    _, _, batches = update(0)
    loss.advance(gathered(loss, batches))
    solved = []
    solve = loss.solve
    monkeypatch.setattr(loss, "solve", lambda *arguments: solved.append(1) or solve(*arguments))
    for expected in (2, 4):
        along(loss, batches)
        assert len(solved) == expected  # two sides


def test_running_is_saved_and_goes_on_as_if_uninterrupted() -> None:
    whole, first, second = (Cka(PAIRS, WIDTHS, CkaOptions("running")) for _ in range(3))
    for seed in range(3):
        _, _, batches = update(seed)
        for loss in (whole, first):
            loss.advance(gathered(loss, batches))
    _, _, other = update(9)
    second.advance(gathered(second, other))
    along(second, other)  # what it has solved is not that of what it loads
    second.load_state_dict({name: tensor.clone() for name, tensor in first.state_dict().items()})
    assert second.collects == "along"
    for seed in (4, 5):
        _, _, batches = update(seed)
        (shown, gradients), (shown_too, gradients_too) = along(whole, batches), along(second, batches)
        assert shown == shown_too
        assert all(torch.equal(gradients[key], gradients_too[key]) for key in gradients)
    assert not Cka(PAIRS, WIDTHS, CkaOptions("update")).state_dict()


def test_running_evaluates_exactly() -> None:
    loss = Cka(PAIRS, WIDTHS, CkaOptions("running")).double()
    student, teacher, batches = update(0)
    for seed in (1, 2):
        loss.advance(gathered(loss, update(seed)[2]))
    with torch.no_grad():
        assert loss.terms(student, teacher) == []
    found = report(loss, loss.coefficients(loss.pool(loss.statistics(student, teacher), alone)))
    exact, _ = pooled(Cka(PAIRS, WIDTHS, CkaOptions("update")), batches)
    assert found == pytest.approx(exact, rel=1e-10)


def test_running_shows_bad_numbers_that_the_averages_do_not_have_yet() -> None:
    loss = Cka(PAIRS, WIDTHS, CkaOptions("running")).double()
    _, _, batches = update(0)
    loss.advance(gathered(loss, batches))
    student, teacher, _ = update(1)
    student.hidden["encoder", 1][2, 3] = math.inf
    teacher.hidden["decoder", 3][0, 0] = math.nan
    parts = {name: part for term in loss.terms(student, teacher) for name, part in term.parts.items()}
    bad = {name for name, part in parts.items() if not math.isfinite(part)}
    assert bad == {"cka/encoder 1<-2", "cka/decoder 1<-3", "cka/decoder 2<-3"}
