"""Normalisation of (B, C, H, W) maps, and the per-channel scale of residual branches."""

from functools import partial
from typing import Any

import torch
from timm.layers import GroupNorm1, LayerNorm2d
from torch import Tensor, nn

from mmpatch.registry import MODELS, Factory, factory


def _group_norm(dim: int, num_groups: int = 32, eps: float = 1e-5) -> nn.GroupNorm:
    return nn.GroupNorm(num_groups, dim, eps)


#: Names as in OpenMMLab configs, resolved here so that a plain torch user needs no mmcv.
NORMS = {
    'BN': nn.BatchNorm2d,
    'SyncBN': nn.SyncBatchNorm,
    'GN': _group_norm,
    'GN1': GroupNorm1,
    'LN2d': LayerNorm2d,
}
for _name, _norm in (('GN1', GroupNorm1), ('LN2d', LayerNorm2d)):
    MODELS.register_module(_name, module=_norm)


def norm_factory(cfg: str | dict[str, Any] | Factory | None) -> Factory:
    """Factory of a norm from its config.

    Args:
        cfg: None for no norm, a callable, a name, or a dict. Its ``type`` is 'GN1' (group norm of
            one group, the statistics of PoolFormer), 'LN2d' (over channels), 'BN', 'SyncBN', 'GN'
            or any registered norm; ``requires_grad=False`` freezes its parameters; the rest goes
            to the norm.
    """
    if not isinstance(cfg, dict):
        return factory(NORMS.get(cfg, cfg) if isinstance(cfg, str) else cfg)
    cfg = dict(cfg)
    requires_grad = cfg.pop('requires_grad', True)
    cfg['type'] = NORMS.get(cfg['type'], cfg['type'])
    make = factory(cfg)
    return make if requires_grad else partial(_frozen, make)


def _frozen(make: Factory, dim: int) -> nn.Module:
    return make(dim).requires_grad_(False)


class LayerScale(nn.Module):
    """Learned scale per channel of a residual branch (CaiT, https://arxiv.org/abs/2103.17239).

    Args:
        dim: Channels C.
        init_value: Initial value of all scales.
    """

    def __init__(self, dim: int, init_value: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((dim,), float(init_value)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return x * self.scale.view(-1, 1, 1)
