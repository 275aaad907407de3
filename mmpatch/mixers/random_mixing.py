"""Random mixing, a baseline of PoolFormer's ablation."""

import torch

from mmpatch.mixers.spatial_mlp import SpatialMLP
from mmpatch.registry import MODELS


@MODELS.register_module()
class RandomMixing(SpatialMLP):
    """A frozen random matrix over the tokens of a grid (https://arxiv.org/abs/2111.11418, Table 5).

    Its rows are softmaxes of uniform random numbers, so that each sums to 1, on other grids to
    about 1.

    Args:
        dim: Channels; any, all of them are mixed alike.
        grid: Tokens (H, W), or the side of a square, for which the matrix is made; it is resampled
            for others.
    """

    def __init__(self, dim: int, grid: int | tuple[int, int] = 14) -> None:
        super().__init__(dim, grid, bias=False)
        weight = self.fc1.weight.requires_grad_(False)
        weight.copy_(torch.rand_like(weight).softmax(-1))
