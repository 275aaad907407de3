"""Folding: norms, residual scales and gates of a trained network move into its linear layers.

A product is a linear layer or a 1x1 convolution. Blocks become sequences of plain modules.
"""

import copy
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmpatch.backbones import MetaFormer
from mmpatch.blocks import ConvMixerBlock, MetaFormerBlock
from mmpatch.deployment.folded import (
    GatedAggregation,
    PooledResidual,
    Residual,
    TokenAttention,
    TokenMlp,
    TokenResidual,
    make_linear,
    make_token_norm,
)
from mmpatch.layers import DropPath, GroupNorm, GroupNorm1, LayerNorm2d, LayerScale, Mlp
from mmpatch.mixers import Attention, ContextAggregation, DepthwiseConv, Pooling, Windowed
from mmpatch.mixers.pooling import AveragePool

Affine = tuple[Tensor, Tensor]  # scale and shift per channel, (C,) each


def deploy(model: nn.Module) -> nn.Module:
    """Copy a model for inference, with the blocks of mmpatch's backbones folded.

    Affine maps of norms and whole batch norms are folded into the products behind them, residual
    scales and gates into the products before them, and PoolFormer's branch becomes one
    interpolation; attention and its MLP work on tokens, and stages that nothing separates become
    one. Outputs stay equal to float32 rounding. Subclasses of blocks, and blocks with
    hooks or patched methods, stay; one log line says how many were folded. The copy has other names
    in its state dict, stays in evaluation mode and is not compiled.

    Args:
        model: A backbone of mmpatch, or any model that holds one, in evaluation mode.

    Raises:
        TypeError: If ``model`` is not a module.
        ValueError: If the model is in training mode, or holds no backbone of mmpatch.
        RuntimeError: If torch cannot copy it; make pruning masks and old weight norms permanent.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f'deploy takes a module, not {model!r}')
    if model.training:
        raise ValueError(f'{type(model).__name__} is in training mode; call eval() first')
    deployed = copy.deepcopy(model)
    stages = [s for m in deployed.modules() if isinstance(m, MetaFormer) for s in m.stages]
    if not stages:
        raise ValueError(f'{type(model).__name__} holds no backbone of mmpatch')
    folded: list[bool] = []
    for stage in stages:
        rows = [(fold_block(block), block) for block in stage.blocks]
        folded += (row is not None for row, _ in rows)
        stage.blocks = nn.ModuleList(part for row, block in rows for part in row or [block])
    for backbone in deployed.modules():
        if isinstance(backbone, MetaFormer):
            _join_stages(backbone)
    print_log(f'mmpatch.deploy: {sum(folded)} of {len(folded)} blocks folded', logger='current')
    return deployed.requires_grad_(False).eval()


@torch.no_grad()
def fold_block(block: Any) -> list[nn.Module] | None:
    """Modules that compute in order what a block computes in evaluation; None for other blocks."""
    dtypes = {parameter.dtype for parameter in block.parameters()}
    if any(map(_is_patched, block.modules())) or len(dtypes) != 1:
        return None
    dtype = dtypes.pop()
    block = copy.deepcopy(block).to(torch.promote_types(dtype, torch.float32))
    if type(block) is ConvMixerBlock and type(block.drop_path) in (nn.Identity, DropPath):
        row = _fold_convmixer(block)
    elif type(block) is MetaFormerBlock and _has_known_parts(block):
        row = [] if block.pos_embed is None else [_fold_position(block.pos_embed)]
        row.append(_fold_mixing(block.norm1, block.token_mixer, block.layer_scale1.scale))
        on_tokens = isinstance(row[-1], TokenResidual)
        if block.mlp:
            row.append(_fold_mlp(block.norm2, block.mlp, block.layer_scale2.scale, on_tokens))
    else:
        return None
    return row and [part.to(dtype) for part in row]


def _fold_mixing(norm: nn.Module, mixer: Any, scale: Tensor | None) -> nn.Module:
    """Residual branch of a token mixer."""
    rest, affine = _split_norm(norm)
    pools = type(mixer) is Pooling and _keeps_constants(mixer.pool)
    if pools and type(rest) is GroupNorm1 and affine is not None:
        return PooledResidual(mixer.pool, affine[0] * (1 if scale is None else scale), rest.eps)
    if type(mixer) in (Attention, ContextAggregation):
        branch, tokens = _fold_products(mixer, affine, scale), make_token_norm(rest)
        if type(branch) is Attention and tokens:
            return TokenResidual(tokens, TokenAttention(branch))
        return Residual(rest, branch)
    if type(mixer) is Windowed and type(mixer.mixer) is Attention:
        # Windows are filled up with zeros behind the norm, which a folded bias would shift.
        mixer.mixer, tokens = _fold_products(mixer.mixer, None, scale), make_token_norm(norm)
        if tokens:
            return TokenResidual(tokens, TokenAttention(mixer.mixer, mixer.window_size))
        return Residual(norm, mixer)
    return Residual(norm, mixer, scale=scale)


def _fold_mlp(norm: nn.Module, mlp: Any, scale: Tensor | None, on_tokens: bool) -> nn.Module:
    """Residual branch of the channel MLP."""
    if type(mlp) is not Mlp or type(mlp.fc2) is not nn.Conv2d:
        return Residual(norm, mlp, scale=scale)
    rest, affine = _split_norm(norm) if _is_product(mlp.fc1) else (norm, None)
    fc1, fc2 = _fold_input(mlp.fc1, affine), _fold_output(mlp.fc2, scale)
    tokens = make_token_norm(rest)
    each = type(mlp.act) in (nn.GELU, nn.ReLU, nn.SiLU) and _is_product(fc1) and _is_product(fc2)
    if on_tokens and tokens and each:
        return TokenResidual(tokens, TokenMlp(make_linear(fc1), mlp.act, make_linear(fc2)))
    return Residual(rest, fc1, mlp.act, fc2)


def _fold_products(mixer: Any, affine: Affine | None, scale: Tensor | None) -> nn.Module:
    """Mixer that maps its input before its first product and its output after its last one."""
    mixer.qkv, mixer.proj = _fold_input(mixer.qkv, affine), _fold_output(mixer.proj, scale)
    if type(mixer) is ContextAggregation and not mixer.dynamic:
        return nn.Sequential(mixer.qkv, mixer.static, mixer.proj)
    static: Any = getattr(mixer, 'static', None)
    gated = type(static) is DepthwiseConv and type(static.conv) is nn.Conv2d
    if not gated:
        return mixer
    return GatedAggregation(mixer, _fold_output(static.conv, mixer.gate_weights()[1]))


def _join_stages(backbone: MetaFormer) -> None:
    """Let stages of an isotropic network that no output and no layer separates become one."""
    ends: list[int] = []
    stages: list[Any] = []
    for i, stage in enumerate(backbone.stages):
        alone = stage.positions is not None or type(stage.downsample) is not nn.Identity
        alone |= i == 0 or i - 1 in backbone.out_indices or _is_patched(stage)
        if alone or _is_patched(stages[-1]) or stage.token_rows != stages[-1].token_rows:
            stages.append(stage)
        else:
            stages[-1].blocks.extend(stage.blocks)
        ends += [len(stages) - 1] if i in backbone.out_indices else []
    norms = zip(ends, backbone.out_norms.values(), strict=bool(backbone.out_norms))
    backbone.out_norms = nn.ModuleDict({str(end): norm for end, norm in norms})
    backbone.stages, backbone.out_indices = nn.ModuleList(stages), tuple(ends)


def _fold_convmixer(block: ConvMixerBlock) -> list[nn.Module] | None:
    """``x + norm1(act(mix(x)))`` is ``x + scale * act(mix(x))``, its shift a bias of the MLP."""
    rest, affine = _split_norm(block.norm1)
    if rest is not None or affine is None or not _is_product(block.mlp):
        return None
    mixing: list[nn.Module] = [block.token_mixer, block.act]
    if block.residual:
        mixing = [Residual(*mixing, scale=affine[0])]
        affine = torch.ones_like(affine[0]), affine[1]
    return [*mixing, _fold_input(block.mlp, affine), block.act, block.norm2]


def _split_norm(norm: Any) -> tuple[nn.Module | None, Affine | None]:
    """What is left of a norm without its affine map, and the map; of unknown norms all is left."""
    plain = type(norm).forward in (_BatchNorm.forward, nn.SyncBatchNorm.forward)
    if plain and norm.running_mean is not None and not norm.training:
        scale = (norm.running_var + norm.eps).rsqrt() * (1 if norm.weight is None else norm.weight)
        shift = -norm.running_mean * scale
        return None, (scale, shift if norm.bias is None else shift + norm.bias)
    known = type(norm) in (GroupNorm, GroupNorm1, LayerNorm2d)
    if not known or norm.weight is None or norm.bias is None:
        return norm, None
    rest = copy.deepcopy(norm)
    rest.weight, rest.bias, rest.affine = None, None, False
    return rest, (norm.weight, norm.bias)


def _fold_input(product: Any, affine: Affine | None) -> nn.Module:
    """Product of ``x * scale + shift``."""
    if affine is None:
        return product
    weight = product.weight.flatten(1)
    bias = weight @ affine[1] if product.bias is None else weight @ affine[1] + product.bias
    return _replace(product, (weight * affine[0]).view_as(product.weight), bias)


def _fold_output(product: Any, scale: Tensor | None) -> nn.Module:
    """Product or convolution whose output is scaled."""
    if scale is None:
        return product
    weight = product.weight * scale.view(-1, *[1] * (product.weight.ndim - 1))
    return _replace(product, weight, None if product.bias is None else product.bias * scale)


def _replace(product: Any, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """Copy of a product with another weight and bias."""
    folded = copy.deepcopy(product)
    folded.weight = nn.Parameter(weight)
    folded.bias = None if bias is None else nn.Parameter(bias)
    return folded


def _fold_position(pos_embed: Any) -> nn.Module:
    """``x + pos_embed(x)``: of a depthwise convolution, one more in the middle of its kernels."""
    conv: Any = pos_embed.conv if type(pos_embed) is DepthwiseConv else None
    depthwise = type(conv) is nn.Conv2d and conv.groups == conv.in_channels == conv.out_channels
    if not depthwise or (conv.padding, conv.dilation) != ('same', (1, 1)):
        return Residual(pos_embed)
    weight = conv.weight.clone()
    weight[:, 0, (conv.kernel_size[0] - 1) // 2, (conv.kernel_size[1] - 1) // 2] += 1
    return _replace(conv, weight, conv.bias)


def _has_known_parts(block: MetaFormerBlock) -> bool:
    sums: Any = [block.layer_scale1, block.layer_scale2 or block.layer_scale1]
    scales = all(type(s) is LayerScale and s.residual for s in sums)
    mixers: Any = [m for m in block.modules() if type(m) in (Attention, ContextAggregation)]
    products = all(_is_product(m.qkv) and _is_product(m.proj) for m in mixers)
    return scales and products and type(block.drop_path) in (nn.Identity, DropPath)


def _is_product(module: Any) -> bool:
    """Whether a module multiplies the channels of each token by one matrix."""
    if type(module) is not nn.Conv2d or module.padding not in ((0, 0), 'same', 'valid'):
        return type(module) is nn.Linear
    return (*module.kernel_size, *module.stride, module.groups) == (1, 1, 1, 1, 1)


def _keeps_constants(pool: Any) -> bool:
    """Whether a pooling is a mean of the positions inside the map."""
    mean = type(pool) in (nn.AvgPool2d, AveragePool) and pool.divisor_override is None
    return mean and not pool.count_include_pad


def _is_patched(module: nn.Module) -> bool:
    """Whether a call of a module runs more than the methods of its class."""
    own = [hasattr(type(module), key) for key, value in vars(module).items() if callable(value)]
    return bool(module._forward_hooks or module._forward_pre_hooks) or any(own)
