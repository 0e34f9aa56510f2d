"""Muon: an optimizer for matrices that makes every direction of a step equally long.

A matrix's gradient is usually dominated by a few directions. Muon keeps its momentum but replaces it,
before moving, by the nearest matrix whose directions all have length 1: what was weak in the gradient
moves as far as what was strong. The nearest such matrix is found by a short iteration of products, without
any decomposition. Embeddings and vectors stay with AdamW.
"""

import torch
from torch import Tensor

from chapters.ch08_distributed import part_of, whole

# The a, b and c of each round. The first throws short directions far, the next two bring all together.
ROUNDS = ((8.2872, -23.5959, 17.3004), (4.1071, -2.9478, 0.5448), (3.9487, -2.9089, 0.5518))


def orthogonalize(matrices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return matrices with the directions of `matrices`, and lengths between about 0.2 and 1.9.

    Each round does X ← aX + (bA + cA²)X with A = XXᵀ, which changes every length s into as + bs³ + cs⁵ and no
    direction. One a hundredth as long as the whole is long enough to come into that range. So little
    exactness is asked that three rounds do, and the products may be done in bfloat16.

    Shapes: N matrices of one shape, (N, m, n) -> (N, m, n), in the dtype of `matrices`.
    Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; the numbers: Amsel et
    al. 2025 (arXiv 2505.16932), algorithm 1.
    """
    # 1. Lay each matrix on its long side (fewer multiplications) and shrink it, so that no length exceeds 1.
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = (x / (1.01 * x.norm(dim=(1, 2), keepdim=True) + 1e-7)).to(dtype)

    # 2. Push all lengths towards 1 at once. baddbmm(x, a, b, beta=β, alpha=α) is βx + αab, matrix by matrix.
    for linear, cubic, quintic in ROUNDS:
        a = x @ x.mT
        a = torch.baddbmm(a, a, a, beta=cubic, alpha=quintic)
        x = torch.baddbmm(x, a, x, beta=linear)
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised, for the two-dimensional parameters inside the blocks.

    The step is scaled by 0.2·√(longer side), which gives it the size AdamW's steps have, so that one
    learning rate and one decay serve both. `dtype` is that of the products in `orthogonalize`.

    Source: Jordan et al. 2024; Liu et al. 2025 (arXiv 2502.16982), equation 4.
    """

    def __init__(self, params, lr=1e-3, momentum=0.95, weight_decay=0.1, dtype=torch.float32):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.dtype = dtype

    @torch.no_grad()
    def step(self) -> None:
        """Move every matrix that has a gradient."""
        # 1. Put matrices of one shape together: a few large products are done sooner than many small ones.
        for group in self.param_groups:
            moved = [p for p in group["params"] if p.grad is not None]
            for shape in dict.fromkeys(p.shape for p in moved):
                self._move([p for p in moved if p.shape == shape], group)

    def _move(self, parameters: list[Tensor], group: dict) -> None:
        """Move matrices of one shape."""
        # 1. Average the gradients of each, then look one step ahead (Nesterov). Gather what several processes share.
        ahead = []
        for p in parameters:
            average = self.state[p].setdefault("momentum", torch.zeros_like(p))
            average.lerp_(p.grad, 1 - group["momentum"])
            ahead.append(whole(p.grad.lerp(average, group["momentum"])))

        # 2. Level whole matrices, even where this process holds a part of each alone. Decay, then move.
        rate = group["lr"]
        for p, direction in zip(parameters, orthogonalize(torch.stack(ahead), self.dtype), strict=True):
            p.mul_(1 - rate * group["weight_decay"])
            p.sub_(part_of(direction, p), alpha=rate * 0.2 * max(p.shape) ** 0.5)
