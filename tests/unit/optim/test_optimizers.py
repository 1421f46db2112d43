from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from cktk.errors import ConfigError
from cktk.optim.configs import AdamConfig
from cktk.optim.optimizers import adam, adamw, parameter_groups

CONFIG = AdamConfig(lr=0.01, adam_betas=(0.9, 0.98), adam_eps=1e-6, weight_decay=0.1)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 3)
        self.norm = nn.LayerNorm(3)
        self.linear = nn.Linear(3, 3)
        self.head = nn.Linear(3, 7, bias=False)
        self.head.weight = self.embed.weight


def test_biases_and_norms_have_no_decay() -> None:
    model = Tied()
    decayed, plain = parameter_groups(model.named_parameters(remove_duplicate=False), 0.1)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert [id(p) for p in decayed["params"]] == [id(model.embed.weight), id(model.linear.weight)]
    assert [id(p) for p in plain["params"]] == [id(model.linear.bias), id(model.norm.bias), id(model.norm.weight)]


def test_groups_do_not_depend_on_the_order_given() -> None:
    named = list(Tied().named_parameters())
    orders = [
        [[id(p) for p in group["params"]] for group in parameter_groups(given, 0.1)] for given in (named, named[::-1])
    ]
    assert orders[0] == orders[1]


def test_frozen_parameters_are_left_out() -> None:
    model = Tied()
    model.embed.requires_grad_(False)
    kept = [p for group in adamw(CONFIG, model.named_parameters()).param_groups for p in group["params"]]
    assert len(kept) == 4 and all(p.requires_grad for p in kept)
    model.requires_grad_(False)
    with pytest.raises(ConfigError, match="frozen"):
        adamw(CONFIG, model.named_parameters())


@pytest.mark.parametrize("decoupled", [False, True])
def test_updates_follow_the_formula(decoupled: bool) -> None:
    matrix, vector = (nn.Parameter(torch.randn(*shape, dtype=torch.float64)) for shape in ((3, 2), (4,)))
    gradients = [(torch.randn(3, 2, dtype=torch.float64), torch.randn(4, dtype=torch.float64)) for _ in range(5)]
    expected = [x.detach().clone() for x in (matrix, vector)]
    optimizer = (adamw if decoupled else adam)(CONFIG, [("matrix", matrix), ("vector", vector)])
    for group in gradients:
        matrix.grad, vector.grad = (gradient.clone() for gradient in group)
        optimizer.step()
    for i, (value, decay) in enumerate(zip(expected, (0.1, 0.0), strict=True)):
        mean = square = torch.zeros_like(value)
        for step, group in enumerate(gradients, start=1):
            gradient = group[i] if decoupled else group[i] + decay * value
            if decoupled:
                value = value * (1 - 0.01 * decay)
            mean = 0.9 * mean + 0.1 * gradient
            square = 0.98 * square + 0.02 * gradient**2
            corrected = (square / (1 - 0.98**step)).sqrt() + 1e-6
            value = value - 0.01 * mean / (1 - 0.9**step) / corrected
        torch.testing.assert_close((matrix, vector)[i].detach(), value, rtol=1e-12, atol=1e-14)


def test_fused_on_the_cpu() -> None:
    assert adamw(CONFIG, Tied().named_parameters()).defaults["fused"]


@pytest.mark.parametrize("betas", [(0.9,), (0.9, 0.98, 0.99), (0.9, 1.0), (0.9, math.nan)])
def test_bad_betas(betas: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="--adam-betas"):
        adam(AdamConfig(adam_betas=betas), Tied().named_parameters())
