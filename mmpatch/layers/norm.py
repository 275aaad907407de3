"""Normalisation of (B, C, H, W) maps, and residual sums scaled per channel."""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm import layers
from torch import Tensor, nn

from mmpatch.registry import MODELS, Factory, make_factory

#: Positive, as F.batch_norm requires, and negligible next to 1.
TINY = 1e-30


class GroupNorm(nn.GroupNorm):
    """Group norm (https://arxiv.org/abs/1803.08494) by torch's kernel for NCHW maps.

    torch's kernel for channels_last maps on a CPU computes variances as E[x^2] - E[x]^2, which
    loses digits where the mean is large, and its backward pass crashes the process where the weight
    needs a gradient but the input needs none, as behind frozen layers. Maps of three dimensions do
    not reach that kernel.

    Args:
        dim: Channels C; ``num_groups`` must divide it.
        num_groups: Groups of channels that share their statistics.
        eps: Added to the variance.
        affine: Whether each channel has a weight and a bias.
    """

    def __init__(
        self, dim: int, num_groups: int = 32, eps: float = 1e-5, affine: bool = True
    ) -> None:
        super().__init__(num_groups, dim, eps, affine)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return super().forward(x.flatten(2)).view(x.shape)


class GroupNorm1(GroupNorm):
    """Group norm of one group: statistics over channels and places, as in PoolFormer.

    Args:
        dim: Channels C.
        eps: Added to the variance.
        affine: Whether each channel has a weight and a bias.
    """

    def __init__(self, dim: int, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__(dim, 1, eps, affine)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W), in the memory layout of the input."""
        whole = (
            x.ndim == 4 and self.num_groups == 1 and (self.weight is not None or self.bias is None)
        )
        if x.is_contiguous() or not whole:
            return super().forward(x)
        # Statistics of a whole sample do not depend on the order of its values, so that
        # channels_last memory stays as it is.
        rows = x.permute(0, 2, 3, 1)
        x = F.layer_norm(rows, rows.shape[1:], eps=self.eps).permute(0, 3, 1, 2)
        if self.weight is None:
            return x
        # A batch norm of mean 0 and variance 1 is the affine map in one pass, gradients included.
        zeros, ones = torch.zeros_like(self.weight), torch.ones_like(self.weight)
        return F.batch_norm(x, zeros, ones, self.weight, self.bias, eps=TINY)


class LayerNorm2d(layers.LayerNorm2d):
    """timm's layer norm over the channels of each place, in the precision of its weight.

    Under autocast, torch's kernel for a CPU sums the gradients of weight and bias in bfloat16, in
    which a sum of ones ends at 256 (torch 2.11).
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W), in the precision of the input."""
        if self.weight is None or x.dtype == self.weight.dtype:
            return super().forward(x)
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)


#: Names as in OpenMMLab configs, resolved here so that a plain torch user needs no mmcv.
NORMS = {
    'BN': nn.BatchNorm2d,
    'SyncBN': nn.SyncBatchNorm,
    'GN': GroupNorm,
    'GN1': GroupNorm1,
    'LN2d': LayerNorm2d,
}
for _name, _norm in (('GN1', GroupNorm1), ('LN2d', LayerNorm2d)):
    MODELS.register_module(_name, module=_norm)


def make_norm_factory(cfg: str | dict[str, Any] | Factory | None) -> Factory:
    """Factory of a norm from its config.

    Args:
        cfg: None for no norm, a callable, a name, or a dict. Its ``type`` is 'GN1' (group norm of
            one group, the statistics of PoolFormer), 'LN2d' (over channels, with timm's eps of
            1e-6; the layer norms of PoolFormer's and CONTAINER's authors have 1e-5), 'BN',
            'SyncBN', 'GN' or any registered norm; ``requires_grad=False`` freezes its parameters;
            the rest goes to the norm.
    """
    if not isinstance(cfg, dict):
        return make_factory(NORMS.get(cfg, cfg) if isinstance(cfg, str) else cfg)
    cfg = dict(cfg)
    requires_grad = cfg.pop('requires_grad', True)
    cfg['type'] = NORMS.get(cfg['type'], cfg['type'])
    make = make_factory(cfg)
    return make if requires_grad else partial(_frozen, make)


def _frozen(make: Factory, dim: int) -> nn.Module:
    return make(dim).requires_grad_(False)


class LayerScale(nn.Module):
    """Residual sum with a learned scale per channel (CaiT, https://arxiv.org/abs/2103.17239).

    It adds the branch to the input, where timm's layer of this name only scales the branch.

    Args:
        dim: Channels C.
        init_value: Initial value of all scales; None for a plain sum.
        residual: Whether there is a sum; if not, the branch is returned as it is.
    """

    def __init__(self, dim: int, init_value: float | None, residual: bool = True) -> None:
        super().__init__()
        self.residual = residual
        self.scale = None
        if residual and init_value is not None:
            self.scale = nn.Parameter(torch.full((dim,), init_value))

    def forward(self, x: Tensor, branch: Tensor) -> Tensor:
        """(B, C, H, W), twice -> ``x + scale * branch``, (B, C, H, W)."""
        if not self.residual:
            return branch
        if self.scale is None:
            return x + branch
        return torch.addcmul(x, branch, self.scale.view(-1, 1, 1))
