"""Muon for several models' matrices at once; torch's own takes single matrices, one after the other."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic, Jordan et al. 2024, "Muon"
ITERATIONS, SMALLEST_NORM = 5, 1e-7


class StackedMuon(torch.optim.Optimizer):
    """`torch.optim.Muon(..., adjust_lr_fn="match_rms_adamw")` of fp32 parameters (M, A, B), M matrices each.

    Matrices of one shape are orthogonalised in one batch, over parameters and models.
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
            ValueError: a parameter has other than three dimensions, or momentum is not between 0 and 1.
        """
        super().__init__(
            params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "precision": precision}
        )
        for group in self.param_groups:
            if not 0 < group["momentum"] < 1:
                raise ValueError(f"expected a momentum between 0 and 1, {group['momentum']} came")
        for parameter in (p for group in self.param_groups for p in group["params"]):
            if parameter.dim() != 3:
                raise ValueError(f"expected parameters (M, A, B), one of shape {tuple(parameter.shape)} came")

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        if closure is not None:
            raise ValueError("StackedMuon takes no closure: call backward before step()")
        for group in self.param_groups:
            alike: dict[torch.Size, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike.setdefault(parameter.shape[1:], []).append(parameter)
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
        # Nesterov's step is momentum x buffer + (1 - momentum) x gradient. Its size does not matter, so one sum
        # makes it, written where and as the products read it.
        models, *shape = [sum(len(p) for p in parameters), *parameters[0].shape[1:]]
        steps = gradients[0].new_empty(models, *shape, dtype=precision)
        parts = steps.split([len(p) for p in parameters])
        for buffer, gradient, part in zip(buffers, gradients, parts, strict=True):
            torch.add(buffer, gradient, alpha=1 / momentum - 1, out=part)
        size = rate * 0.2 * max(shape) ** 0.5  # that of AdamW's steps: match_rms_adamw
        found = orthogonal(steps, scale=-size).split([len(p) for p in parameters])
        for parameter, step in zip(parameters, found, strict=True):
            torch.add(step, parameter, alpha=1 - rate * group["weight_decay"], out=parameter)


def orthogonal(x: Tensor, scale: float = 1.0) -> Tensor:
    """Roughly scale U V^T of each U S V^T of x (N, A, B): five Newton-Schulz iterations."""
    a, b, c = COEFFICIENTS
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=SMALLEST_NORM)  # no singular value above 1
    tall = x.shape[1] > x.shape[2]
    for iteration in range(ITERATIONS):
        gram = x.mT @ x if tall else x @ x.mT  # of the shorter side
        of_gram = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        by = scale if iteration == ITERATIONS - 1 else 1.0
        x = torch.baddbmm(x, *((x, of_gram) if tall else (of_gram, x)), beta=a * by, alpha=by)
    return x
