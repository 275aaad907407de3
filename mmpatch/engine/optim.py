"""Layer-wise learning rate decay, and mixed precision without a GPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from mmengine.runner.amp import autocast
from torch import nn

from mmpatch.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS


@OPTIM_WRAPPERS.register_module()
class BFloat16OptimWrapper(OptimWrapper):
    """Mixed precision in bfloat16, on a CPU or GPU; weights and optimizer stay in float32.

    MMEngine's ``AmpOptimWrapper`` refuses a CPU. bfloat16 has the range of float32, so losses are
    not scaled. The arguments are those of MMEngine's ``OptimWrapper``.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Context of the forward pass: autocast, and no communication that can wait."""
        with super().optim_context(model), autocast(dtype=torch.bfloat16):
            yield

    def initialize_count_status(self, model: nn.Module, *args: Any) -> None:
        """Prepare a training; layer norms of hosts get float32, as autocast does it on a GPU."""
        super().initialize_count_status(model, *args)
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):  # see mmpatch.layers.LayerNorm2d
                module.register_forward_pre_hook(lambda _, args: args[0].float())


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Layer-wise learning rate decay for every backbone here (BEiT, https://arxiv.org/abs/2106.08254).

    A parameter at depth d of D has the learning rate ``lr * decay_rate ** (D - 1 - d)``. The
    backbone gives the depths (``get_layer_depth``); all other parameters have ``lr``. For ViT
    these are the rates of ViTDet (``get_vit_lr_decay_rate`` in ``vit.py`` of detectron2).

    Args:
        optim_wrapper_cfg: As in MMEngine's default constructor.
        paramwise_cfg: ``decay_rate``, and all keys of MMEngine's: ``norm_decay_mult=0`` for no
            weight decay of norms, ``bias_decay_mult=0`` of biases, ``flat_decay_mult=0`` of all
            vectors (norms, biases, layer scale), ``custom_keys={'pos_embed': dict(decay_mult=0)}``
            of positions. Rates of ``custom_keys`` are multiplied by those of the layers. A
            parameter that two modules share is added once.

    Raises:
        ValueError: If ``decay_rate`` is missing or not in (0, 1], or no part of the model
            gives depths.
    """

    def __init__(
        self, optim_wrapper_cfg: dict[str, Any], paramwise_cfg: dict[str, Any] | None = None
    ) -> None:
        paramwise_cfg = {'bypass_duplicate': True, **(paramwise_cfg or {})}
        self.decay_rate = paramwise_cfg.pop('decay_rate', None)
        if self.decay_rate is None or not 0 < self.decay_rate <= 1:
            raise ValueError(
                f'paramwise_cfg.decay_rate={self.decay_rate}: give a number in (0, 1], such as 0.7'
            )
        super().__init__(optim_wrapper_cfg, paramwise_cfg)

    def add_params(
        self, params: list[dict[str, Any]], module: nn.Module, prefix: str = '', **kwargs: Any
    ) -> None:
        """Add the groups of a module as MMEngine does, then scale the rates of the whole model."""
        super().add_params(params, module, prefix, **kwargs)
        if prefix:  # called again for each child
            return
        parts = [(f'{name}.' if name else '', part) for name, part in module.named_modules()]
        backbones = [(name, part) for name, part in parts if hasattr(part, 'get_layer_depth')]
        if not backbones:
            raise ValueError(f'{type(module).__name__} has no backbone of mmpatch to give depths')
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        for group in params:
            name = names[id(group['params'][0])]
            for start, backbone in backbones:
                if name.startswith(start):
                    depth, count = backbone.get_layer_depth(name, start)
                    scale = self.decay_rate ** (count - 1 - depth)
                    group['lr'] = group.get('lr', self.base_lr) * scale
                    print_log(f'{name}: lr * {scale:.4g}', logger='current', level=10)
                    break
