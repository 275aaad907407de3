"""No mixing at all, the baseline of PoolFormer's ablation."""

from torch import Tensor, nn

from mmpatch.mixers.tokens import Grid, impulses, to_map, to_tokens
from mmpatch.registry import MODELS


@MODELS.register_module()
class Identity(nn.Module):
    """Returns its input: tokens meet only in the patch embeddings (2111.11418, Table 5).

    Args:
        dim: Channels; any.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return x

    def affinity(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 1, N, N), the identity."""
        return impulses(x.shape[2:], x).flatten(1).expand(x.shape[0], 1, -1, -1)

    def values(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 1, N, C)."""
        return to_tokens(x)

    def project(self, mixed: Tensor, size: Grid) -> Tensor:
        """Mixed values (B, 1, N, C) -> (B, C, H, W)."""
        return to_map(mixed, size)
