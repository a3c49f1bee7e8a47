"""Muon: momentum whose update is made orthogonal (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/).

A gradient matrix is usually led by a few directions. Replacing it by the nearest semi-orthogonal matrix lets all of
them learn at the same pace. Newton-Schulz gets near that matrix with products alone and needs no decomposition.

Every one of its steps multiplies X by a polynomial of the Gram matrix X X^T, so that all of them are one product of
small square matrices, which meets the long X twice only: before and after.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .parallel import Group

# Jordan et al. 2024: the quintic a x + b x^3 + c x^5 lifts small singular values fast and ends with all in 0.7 to 1.2.
A, B, C = 3.4445, -4.7750, 2.0315
STEPS = 5


class Muon(torch.optim.Optimizer):
    """For convolutions' weights, seen as matrices (outputs, all else). lr is about the change of a singular value a
    step; momentum is Nesterov's. The processes of group, which must have the same gradients, share the work."""

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        group: Group | None = None,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.group = group or Group()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step on every weight that has a gradient."""
        if closure is not None:
            raise ValueError("Muon takes no closure")
        for settings in self.param_groups:
            params = [p for p in settings["params"] if p.grad is not None]
            ahead = [self._ahead(p, settings["momentum"]) for p in params]
            matrices = [a.flatten(1) for a in ahead]  # (outputs, kernel * inputs): the columns' order does not matter
            updates = self.group.map(orthogonal, matrices, [cost(*m.shape) for m in matrices])
            for p, a, update in zip(params, ahead, updates, strict=True):
                tall = max(1.0, update.shape[0] / update.shape[1]) ** 0.5
                p.mul_(1 - settings["lr"] * settings["weight_decay"])
                p.add_(update.view(a.shape).movedim(-1, 1), alpha=-settings["lr"] * tall)

    def _ahead(self, p: nn.Parameter, keep: float) -> Tensor:
        """Nesterov's look ahead along p's momentum; as it lies in memory, channels last."""
        state = self.state[p]
        if not state:
            state["momentum"] = torch.zeros_like(p)
        assert p.grad is not None
        momentum: Tensor = state["momentum"].lerp_(p.grad, 1 - keep)
        return p.grad.lerp(momentum, keep).movedim(1, -1)


def cost(rows: int, columns: int) -> float:
    """Of `orthogonal`: multiplications, about."""
    short, long = sorted((rows, columns))
    return float(2 * short * short * long + 3 * STEPS * short**3)


def orthogonal(matrix: Tensor) -> Tensor:
    """About the semi-orthogonal matrix nearest to matrix (N, M): U V^T of its decomposition U S V^T, float32.

    Singular values end between 0.7 and 1.2, which serves as well as 1; those below a thousandth of the largest stay
    smaller.
    """
    x = matrix.float()
    wide = x.shape[0] <= x.shape[1]
    x = x if wide else x.T
    x = x / (x.norm() + 1e-7)  # singular values at most 1
    gram = x @ x.T  # what rounds to below zero would grow from step to step: this needs all of float32
    whole = polynomial(gram)
    step = whole
    for _ in range(STEPS - 1):
        gram = step @ gram @ step
        step = polynomial(gram)
        whole = step @ whole
    x = whole @ x
    return x if wide else x.T


def polynomial(gram: Tensor) -> Tensor:
    """a + b G + c G^2 (N, N): what one step multiplies by."""
    p = torch.addmm(gram, gram, gram, beta=B, alpha=C)
    p.diagonal().add_(A)
    return p
