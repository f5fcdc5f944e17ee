"""Muon for several models' matrices at once; torch's own takes single matrices, one after the other."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic, Jordan et al. 2024, "Muon"
ITERATIONS, SMALLEST_NORM = 5, 1e-7


class StackedMuon(torch.optim.Optimizer):
    """`torch.optim.Muon(..., adjust_lr_fn="match_rms_adamw")` of parameters (M, A, B), M matrices each.

    Matrices of one shape, or of it turned, are orthogonalised in one batch, over parameters and models.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        weight_decay: float,
        momentum: float = 0.95,
        precision: torch.dtype = torch.bfloat16,
    ) -> None:
        """`precision`: that matrices are orthogonalised in.

        Raises:
            ValueError: a parameter has other than three dimensions.
        """
        super().__init__(
            params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "precision": precision}
        )
        for parameter in (p for group in self.param_groups for p in group["params"]):
            if parameter.dim() != 3:
                raise ValueError(f"expected parameters (M, A, B), one of shape {tuple(parameter.shape)} came")

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        if closure is not None:
            raise ValueError("StackedMuon takes no closure: call backward before step()")
        for group in self.param_groups:
            alike: dict[tuple[int, ...], list[nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike.setdefault(tuple(sorted(parameter.shape[1:])), []).append(parameter)
            for parameters in alike.values():
                self._step(parameters, group)
        return None

    def _step(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        rate, momentum, precision = group["lr"], group["momentum"], group["precision"]
        gradients = [p.grad for p in parameters if p.grad is not None]
        buffers = []
        for parameter, gradient in zip(parameters, gradients, strict=True):
            state = self.state[parameter]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(gradient)
            buffers.append(state["momentum_buffer"])
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        ahead = torch._foreach_lerp(gradients, buffers, momentum)  # Nesterov's
        turned = [p.shape[1] > p.shape[2] for p in parameters]
        wide = torch.cat([(x.mT if turn else x).to(precision) for x, turn in zip(ahead, turned, strict=True)])
        found = orthogonal(wide).split([len(p) for p in parameters])
        weights: list[Tensor] = [*parameters]
        torch._foreach_mul_(weights, 1 - rate * group["weight_decay"])
        size = rate * 0.2 * wide.shape[2] ** 0.5  # that of AdamW's steps: match_rms_adamw
        for parameter, step, turn in zip(parameters, found, turned, strict=True):
            parameter.add_(step.mT if turn else step, alpha=-size)


def orthogonal(x: Tensor) -> Tensor:
    """Roughly U V^T of each U S V^T of x (N, A, B), A at most B: five Newton-Schulz iterations."""
    a, b, c = COEFFICIENTS
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=SMALLEST_NORM)  # no singular value above 1
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x
