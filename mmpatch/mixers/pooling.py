"""Average pooling, the token mixer of PoolFormer."""

from torch import Tensor, nn

from mmpatch.mixers.tokens import Grid, impulses, to_map, to_tokens
from mmpatch.registry import MODELS


@MODELS.register_module()
class Pooling(nn.Module):
    """Mean of the neighbourhood minus the token itself (https://arxiv.org/abs/2111.11418, eq. 4).

    Positions outside the map do not count, so a constant map is mixed to zero.

    Args:
        dim: Channels; any, pooling has no parameters.
        pool_size: Side of the neighbourhood, odd.

    Raises:
        ValueError: If ``pool_size`` is not odd and positive.
    """

    def __init__(self, dim: int, pool_size: int = 3) -> None:
        super().__init__()
        if pool_size < 1 or pool_size % 2 == 0:
            raise ValueError(f'pool_size must be odd and positive, got {pool_size}')
        self.pool = nn.AvgPool2d(pool_size, 1, pool_size // 2, count_include_pad=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return self.pool(x) - x

    def affinity(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 1, N, N), rows of sum 0."""
        seen = self(impulses(x.shape[2:], x))
        return seen.flatten(2).permute(1, 2, 0).expand(len(x), -1, -1, -1)

    def values(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 1, N, C)."""
        return to_tokens(x)

    def project(self, mixed: Tensor, size: Grid) -> Tensor:
        """Mixed values (B, 1, N, C) -> (B, C, H, W)."""
        return to_map(mixed, size)
