"""Channel MLP."""

from collections.abc import Callable

from timm.layers import trunc_normal_
from torch import Tensor, nn


class Mlp(nn.Module):
    """Two 1x1 convolutions with an activation between, initialised as PoolFormer's (std 0.02).

    Args:
        dim: Channels C of input and output.
        hidden_dim: Channels between.
        act: Activation class.
        drop: Dropout rate behind both convolutions.
    """

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        act: Callable[[], nn.Module] = nn.GELU,
        drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(dim, hidden_dim, 1)
        self.act = act()
        self.fc2 = nn.Conv2d(hidden_dim, dim, 1)
        self.drop = nn.Dropout(drop) if drop else nn.Identity()
        for weight, bias in (self.fc1.parameters(), self.fc2.parameters()):
            trunc_normal_(weight, std=0.02)
            nn.init.zeros_(bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))
