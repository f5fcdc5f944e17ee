"""Muon of several models' matrices at once is torch's Muon of each."""

import pytest
import torch

from seqpope.muon import StackedMuon, orthogonal

SHAPES = [(8, 20), (20, 8), (8, 8), (8, 20)]


def gradients(step, models):
    random = torch.Generator().manual_seed(step)
    # Of sizes far apart: each matrix is orthogonalised by its own norm.
    return [torch.randn(models, *shape, generator=random) * 10.0 ** (n - 2) for n, shape in enumerate(SHAPES)]


@pytest.mark.parametrize("models", [1, 3])
def test_steps_are_those_of_torch(models):
    torch.manual_seed(0)
    stacked = [torch.nn.Parameter(torch.randn(models, *shape)) for shape in SHAPES]
    before = [p.detach().clone() for p in stacked]
    alone = [[torch.nn.Parameter(p[m].detach().clone()) for p in stacked] for m in range(models)]
    ours = StackedMuon(stacked, lr=0.05, weight_decay=0.3)
    theirs = [torch.optim.Muon(each, lr=0.05, weight_decay=0.3, adjust_lr_fn="match_rms_adamw") for each in alone]
    for step in range(5):
        for parameter, gradient in zip(stacked, gradients(step, models), strict=True):
            parameter.grad = gradient.clone()
            for m, each in enumerate(alone):
                each[next(n for n, p in enumerate(stacked) if p is parameter)].grad = gradient[m].clone()
        for group in (ours, *theirs):
            group.param_groups[0]["lr"] = 0.05 / (step + 1)
            group.step()
    for n, parameter in enumerate(stacked):
        for m, each in enumerate(alone):
            # Orthogonalised in bf16, whose sums come in another order in a batch.
            torch.testing.assert_close(parameter[m], each[n], rtol=0, atol=2e-3)
        assert (parameter - before[n]).abs().mean() > 0.02  # ten times what the two may differ by


def by_the_formula(weight, gradients, rates, decay, momentum=0.95):
    """One matrix after Jordan et al. 2024 with the step's size of torch's match_rms_adamw, in fp64."""
    a, b, c = 3.4445, -4.7750, 2.0315
    buffer = torch.zeros_like(weight)
    for gradient, rate in zip(gradients, rates, strict=True):
        buffer = momentum * buffer + (1 - momentum) * gradient
        x = momentum * buffer + (1 - momentum) * gradient
        x = x / x.norm()
        for _ in range(5):
            x = a * x + b * x @ x.T @ x + c * x @ x.T @ x @ x.T @ x
        weight = weight - rate * decay * weight - rate * 0.2 * max(weight.shape) ** 0.5 * x
    return weight


def test_steps_are_those_of_the_formula():
    torch.manual_seed(0)
    stacked = [torch.nn.Parameter(torch.randn(3, *shape, dtype=torch.float64)) for shape in SHAPES]
    optimizer = StackedMuon(stacked, lr=1.0, weight_decay=0.3, precision=torch.float64)
    every = [[g.double() for g in gradients(step, 3)] for step in range(5)]
    rates = [0.05 / (step + 1) for step in range(5)]
    expected = [
        torch.stack([by_the_formula(p[m].detach(), [g[n][m] for g in every], rates, 0.3) for m in range(3)])
        for n, p in enumerate(stacked)
    ]
    for step, rate in enumerate(rates):
        optimizer.param_groups[0]["lr"] = rate
        for parameter, gradient in zip(stacked, every[step], strict=True):
            parameter.grad = gradient
        optimizer.step()
    torch.testing.assert_close([p.detach() for p in stacked], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("asked", [{}, {"precision": torch.float32}])
def test_matrices_are_orthogonalised_in_the_precision_asked_for(monkeypatch, asked):
    seen = []
    monkeypatch.setattr("seqpope.muon.orthogonal", lambda x, scale: seen.append(x.dtype) or x)
    parameter = torch.nn.Parameter(torch.ones(2, 3, 4))
    parameter.grad = torch.ones(2, 3, 4)
    StackedMuon([parameter], lr=0.1, weight_decay=0.5, **asked).step()
    assert seen == [asked.get("precision", torch.bfloat16)]
    assert parameter.dtype == torch.float32


def test_singular_values_become_one_or_so():
    x = (
        torch.randn(4, 6, 15, generator=torch.Generator().manual_seed(0))
        * torch.tensor([1e-3, 1, 50, 7])[:, None, None]
    )
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    found = orthogonal(x)
    values = torch.linalg.svdvals(found)
    assert 0.6 < values.min() < values.max() < 1.3
    # The singular vectors stay: in their own basis the result is diagonal.
    inner = u.mT @ found @ v.mT
    assert (inner - torch.diag_embed(inner.diagonal(dim1=1, dim2=2))).abs().max() < 1e-4


def test_a_matrix_of_zeros_stays_and_nan_stays_in_its_model():
    assert (orthogonal(torch.zeros(2, 3, 4)) == 0).all()
    parameter = torch.nn.Parameter(torch.ones(2, 3, 4))
    optimizer = StackedMuon([parameter], lr=0.1, weight_decay=0.0)
    parameter.grad = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1))
    parameter.grad[1, 0, 0] = float("nan")
    optimizer.step()
    assert parameter[0].isfinite().all()
    assert not (parameter[0] == 1).any()
    assert parameter[1].isnan().all()


def test_parameters_without_gradients_are_left():
    parameters = [torch.nn.Parameter(torch.ones(2, 3, 4)) for _ in range(2)]
    optimizer = StackedMuon(parameters, lr=0.1, weight_decay=0.5)
    parameters[1].grad = torch.ones(2, 3, 4)
    optimizer.step()
    assert (parameters[0] == 1).all()
    assert (parameters[1] != 1).all()


def test_what_it_does_not_take_is_refused():
    with pytest.raises(ValueError, match=r"expected parameters \(M, A, B\), one of shape \(3, 4\) came"):
        StackedMuon([torch.nn.Parameter(torch.ones(3, 4))], lr=0.1, weight_decay=0.0)
    with pytest.raises(ValueError, match="no closure"):
        StackedMuon([torch.nn.Parameter(torch.ones(2, 3, 4))], lr=0.1, weight_decay=0.0).step(lambda: 0)
    for momentum in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match="expected a momentum between 0 and 1"):
            StackedMuon([torch.nn.Parameter(torch.ones(2, 3, 4))], lr=0.1, weight_decay=0.0, momentum=momentum)
    own = [{"params": [torch.nn.Parameter(torch.ones(2, 3, 4))], "momentum": 0.0}]
    with pytest.raises(ValueError, match="expected a momentum between 0 and 1"):
        StackedMuon(own, lr=0.1, weight_decay=0.0)
