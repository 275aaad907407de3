"""No mixing at all, the baseline of PoolFormer's ablation."""

from torch import Tensor

from mmpatch.mixers.tokens import StaticMixer
from mmpatch.registry import MODELS


@MODELS.register_module()
class Identity(StaticMixer):
    """Returns its input: tokens meet only in the patch embeddings (2111.11418, Table 5).

    Args:
        dim: Channels; any.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return x
