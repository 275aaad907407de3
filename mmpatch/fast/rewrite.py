"""From the blocks as they are trained to those of :mod:`mmpatch.fast.deployed`."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmpatch.backbones import MetaFormer
from mmpatch.blocks import ConvMixerBlock, MetaFormerBlock
from mmpatch.fast.deployed import (
    Depthwise,
    FusedAggregation,
    FusedAttention,
    FusedConvMixerBlock,
    FusedMlp,
    FusedPooling,
    Linear,
    Norm,
)
from mmpatch.fast.forms import ACTS, conv_of, known, known_mlp, matrix, scale_of
from mmpatch.mixers import Attention, ContextAggregation, Pooling, Windowed


def deploy(model: nn.Module) -> nn.Module:
    """Copy of a model for inference, with every exact rewrite applied to backbones of mmpatch.

    Norms' affines, layer scales and gates are folded into the products around them, activations
    and residuals into the same passes, batch norms into convolutions; results stay equal to float32
    rounding. Blocks that no rewrite knows stay as they are. A deployed model cannot be trained and
    has other names in its state dict, and its parts may overwrite what the part before them made:
    hooks should copy what they keep. Deploying it again changes nothing.

    Args:
        model: A backbone of mmpatch, or any model of mmdet or mmseg that holds one.

    Raises:
        ValueError: If the model is in training mode, or holds no backbone of mmpatch.
    """
    if model.training:
        raise ValueError(f'{type(model).__name__} is in training mode; call eval() first')
    copied = copy.deepcopy(model)
    backbones = [part for part in copied.modules() if isinstance(part, MetaFormer)]
    if not backbones:
        raise ValueError(f'{type(model).__name__} holds no backbone of mmpatch')
    with torch.no_grad():
        for backbone in backbones:
            for stage in backbone.stages:
                parts = [part for block in stage.blocks for part in _fused(block)]
                stage.blocks = nn.ModuleList(parts)
    return copied.requires_grad_(False).eval()


def _fused(block: nn.Module) -> list[nn.Module]:
    """What a block consists of, in order; the block itself where a part has no fused form."""
    if type(block) is ConvMixerBlock:  # subclasses may compute something else
        return [_fused_convmixer(block)]
    if type(block) is not MetaFormerBlock:
        return [block]
    norm1, norm2 = _affine(block.norm1), _affine(block.norm2)
    pos_embed = _with_identity(block.pos_embed)
    unknown_position = block.pos_embed is not None and pos_embed is None
    if norm1 is None or norm2 is None or not known_mlp(block.mlp) or unknown_position:
        return [block]
    # Last, since it changes the mixer: whoever returns the block itself must not have called it.
    mixer = _fused_mixer(block.token_mixer, block.norm1, norm1, scale_of(block.layer_scale1))
    if mixer is None:
        return [block]
    kind, weight, bias = norm2
    fc1 = _into(matrix(block.mlp.fc1), block.mlp.fc1.bias, weight, bias)
    fc2 = _scaled(matrix(block.mlp.fc2), block.mlp.fc2.bias, scale_of(block.layer_scale2))
    act = ACTS[type(block.mlp.act)]
    mlp = FusedMlp(kind, Linear(*fc1), act, Linear(*fc2))
    return [mixer, mlp] if pos_embed is None else [pos_embed, mixer, mlp]


def _fused_mixer(
    mixer: nn.Module, norm: nn.Module, parts: tuple[Norm, Tensor, Tensor], scale: Tensor | None
) -> nn.Module | None:
    """Residual form of a mixer behind a norm and before a scale; None, and no change, without."""
    kind, weight, bias = parts
    if type(mixer) is Pooling and kind.kind == 'sample':
        return FusedPooling(mixer.pool, weight if scale is None else weight * scale, kind.eps)
    inner: Any = mixer.mixer if type(mixer) is Windowed else mixer
    if type(inner) is Attention:
        inner.add_module('proj', Linear(*_scaled(inner.proj.weight, inner.proj.bias, scale)))
        band = mixer.window_size if type(mixer) is Windowed and kind.kind == 'token' else None
        if mixer is not inner and bias.any():
            # Windows are filled up with zeros behind the norm, which a folded bias would shift.
            inner.add_module('qkv', Linear(*_scaled(inner.qkv.weight, inner.qkv.bias, None)))
            return FusedAttention(norm, mixer, band)
        inner.add_module('qkv', Linear(*_into(inner.qkv.weight, inner.qkv.bias, weight, bias)))
        return FusedAttention(kind, mixer, band)
    if type(mixer) is ContextAggregation and kind.kind == 'none':
        return _fused_aggregation(mixer, weight, bias, scale)
    return None


def _fused_aggregation(
    mixer: ContextAggregation, weight: Tensor, bias: Tensor, scale: Tensor | None
) -> nn.Module | None:
    static = conv_of(mixer.static)
    if mixer.static is not None and static is None:
        return None
    qkv = Linear(*_into(matrix(mixer.qkv), mixer.qkv.bias, weight, bias))
    proj = Linear(*_scaled(matrix(mixer.proj), mixer.proj.bias, scale))
    alpha = torch.ones(1) if mixer.dynamic else None
    if mixer.dynamic and static is not None:
        alpha, beta = mixer._weights()
        static.weight.mul_(beta)
        if static.bias is not None:
            static.bias.mul_(beta)
    return FusedAggregation(qkv, static, proj, alpha, mixer.num_heads)


def _fused_convmixer(block: ConvMixerBlock) -> nn.Module:
    norm1, norm2 = _affine(block.norm1), _affine(block.norm2)
    if norm1 is None or norm2 is None or not known(block.act):
        return block
    if norm1[0].kind != 'none' or norm2[0].kind != 'none':
        return block
    ones = torch.ones_like(norm1[1])
    mlp = Linear(*_into(matrix(block.mlp), block.mlp.bias, ones, norm1[2]))
    act, mixer, conv = ACTS[type(block.act)], block.token_mixer, conv_of(block.token_mixer)
    if conv is not None and conv.kernel_size[0] % 2:
        mixer = Depthwise(*_scaled(conv.weight, conv.bias, None), act)
    else:
        mixer = nn.Sequential(mixer, block.act)
    return FusedConvMixerBlock(mixer, act, norm1[1], mlp, norm2[1], norm2[2], block.residual)


def _affine(norm: nn.Module) -> tuple[Norm, Tensor, Tensor] | None:
    """Statistics, scale and shift of a norm; None for one that has no such form."""
    weight, bias = getattr(norm, 'weight', None), getattr(norm, 'bias', None)
    if weight is None or bias is None:
        return None
    if isinstance(norm, _BatchNorm) and norm.running_mean is not None:
        assert norm.running_var is not None
        scale = weight * torch.rsqrt(norm.running_var + norm.eps)
        return Norm('none'), scale, bias - norm.running_mean * scale
    if isinstance(norm, nn.GroupNorm) and norm.num_groups == 1:
        return Norm('sample', norm.eps), weight, bias
    if isinstance(norm, nn.LayerNorm):
        return Norm('token', norm.eps), weight, bias
    return None


def _into(
    weight: Tensor, bias: Tensor | None, scale: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    """Product of ``x * scale + shift``."""
    moved = weight @ shift
    return weight * scale, moved if bias is None else moved + bias


def _scaled(weight: Tensor, bias: Tensor | None, scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """Product whose result is scaled."""
    bias = weight.new_zeros(len(weight)) if bias is None else bias
    return (weight, bias) if scale is None else (weight * scale[:, None], bias * scale)


def _with_identity(pos_embed: nn.Module | None) -> nn.Module | None:
    """Depthwise convolution that also adds its input: one more in the middle of its kernels."""
    conv = copy.deepcopy(conv_of(pos_embed))
    if conv is None:
        return None
    middle = (conv.kernel_size[0] - 1) // 2  # of an even kernel, too: the rest is padded behind
    conv.weight[:, 0, middle, middle] += 1
    return conv
