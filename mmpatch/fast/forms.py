"""Which block runs in which form, and the switch between plain and fast ones."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from mmpatch.blocks import ConvMixerBlock, MetaFormerBlock
from mmpatch.fast import functions as fast
from mmpatch.fast.convmixer import NormedMixing
from mmpatch.fast.depthwise import DepthwiseMixing
from mmpatch.fast.layout import channels_last
from mmpatch.fast.parts import BatchNorm, GroupNorm, LayerNorm
from mmpatch.layers import DropPath, GroupNorm1, LayerNorm2d, LayerScale, Mlp
from mmpatch.mixers import Attention, DepthwiseConv, Pooling

#: Of MLPs with so many channels or fewer, hidden tokens are made again in the backward pass, not
#: kept: their product costs less than the memory (measured on a CPU, docs/performance.md).
FEW_CHANNELS = 128
ACTS = {nn.GELU: 'gelu', nn.ReLU: 'relu', nn.SiLU: 'swish'}
_on = True


@contextmanager
def plain_forms() -> Iterator[None]:
    """Context in which every block runs as :mod:`mmpatch.blocks` writes it.

    For second derivatives, which the fast forms do not have, and for comparisons.
    """
    global _on
    before, _on = _on, False
    try:
        yield
    finally:
        _on = before


def run(block: nn.Module, x: Tensor, with_cp: bool = False) -> Tensor:
    """Output of a block, of its fast form where it has one.

    Blocks keep their plain form under compilers and tracers, which fuse by themselves, with hooks,
    and where a part of them is not of the kind that the form was made for.

    Args:
        block: Maps (B, C, H, W) to (B, C, H, W).
        x: Input.
        with_cp: Whether to keep little for the backward pass: the inputs of both branches of a
            PoolFormer block, the input of any other block.
    """
    form = _form(block, x)
    if form is not None:
        x = channels_last(x)
    if with_cp and form is _pooling_block:
        return form(block, x, again=True)
    call = block if form is None else lambda y: form(block, y)
    return checkpoint(call, x, use_reentrant=False) if with_cp else call(x)


def _form(block: Any, x: Tensor) -> Any:
    """Fast form of a block for such an input; None without one."""
    if type(block) not in (MetaFormerBlock, ConvMixerBlock) or not _serves(block, x):
        return None
    norm1, norm2 = _norm(block.norm1), _norm(block.norm2)
    if norm2 is None:
        return None
    if type(block) is ConvMixerBlock:
        product = _is_product(block.mlp) and known(block.act)
        batch = isinstance(norm1, BatchNorm) and isinstance(norm2, BatchNorm)
        return _convmixer_block if product and batch else None
    if not known_mlp(block.mlp) or not _known_scale(block.layer_scale2):
        return None
    if not _known_scale(block.layer_scale1) or block.pos_embed is not None:
        return _mlp_only
    mixer = block.token_mixer
    if type(mixer) is Pooling and isinstance(norm1, GroupNorm) and norm1.groups == 1:
        return _pooling_block
    if type(mixer) is Attention and norm1 is not None:
        linear = type(mixer.qkv) is nn.Linear and type(mixer.proj) is nn.Linear
        return _attention_block if linear and mixer.proj.bias is not None else _mlp_only
    return _mlp_only


def _serves(block: Any, x: Tensor) -> bool:
    """Whether nobody wants to see the parts of the block: no compiler, tracer, hook or mode."""
    return (
        _on
        and type(x) is Tensor
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not torch._C._are_functorch_transforms_active()
        and not torch._C._len_torch_dispatch_stack()
        and forward_ad._current_level < 0
        and x.numel() > 0
        and all(p.dtype == x.dtype for p in block.parameters())
        and not torch.nn.modules.module._has_any_global_hook()
        and type(block.drop_path) in (nn.Identity, DropPath)
        and not any(
            m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks
            for m in block.modules()
        )
    )


def _pooling_block(block: Any, x: Tensor, again: bool = False) -> Tensor:
    norm, mixer = block.norm1, block.token_mixer
    x = _apply(
        fast.Pool, x, _keep(block, x), mixer.pool.kernel_size, norm.eps, norm.weight, norm.bias,
        scale_of(block.layer_scale1),
    )  # fmt: skip
    return _mlp(block, x, again)


def _attention_block(block: Any, x: Tensor) -> Tensor:
    norm, mixer = block.norm1, block.token_mixer
    qkv = _apply(
        fast.NormedLinear, x, _norm(norm), _dtype(x), norm.weight, norm.bias,
        mixer.qkv.weight, mixer.qkv.bias,
    )  # fmt: skip
    mixed = mixer.mix(qkv, x.shape[2:]).transpose(1, 2).flatten(2)
    projection = (mixer.proj.weight, mixer.proj.bias, scale_of(block.layer_scale1))
    return _mlp(block, x, False, mixed, _keep(block, x), *projection)


def _mlp_only(block: Any, x: Tensor) -> Tensor:
    if block.pos_embed is not None:
        x = x + block.pos_embed(x)
    x = x + block.drop_path(block.layer_scale1(block.token_mixer(block.norm1(x))))
    # Under autocast a sum may have another type than the parameters.
    if x.dtype != block.norm2.weight.dtype:
        return x + block.drop_path(block.layer_scale2(block.mlp(block.norm2(x))))
    return _mlp(block, x, False)


def _convmixer_block(block: Any, x: Tensor) -> Tensor:
    u = channels_last(_mixed(block.token_mixer, x))
    keep = _keep(block, x)
    own = conv_of(block.token_mixer) is not None  # new memory; another mixer may pass x on
    norms = (_norm(block.norm1, True), _norm(block.norm2, True))
    parameters = (
        block.norm1.weight, block.norm1.bias, matrix(block.mlp), block.mlp.bias,
        block.norm2.weight, block.norm2.bias,
    )  # fmt: skip
    rest = x if block.residual else None
    act = ACTS[type(block.act)]
    return _apply(NormedMixing, rest, u, keep, norms, act, _dtype(x), own, *parameters)


def _mixed(mixer: Any, x: Tensor) -> Tensor:
    """Output of a token mixer, by way of oneDNN's fast gradients where it has a large kernel."""
    conv = conv_of(mixer)
    if conv is None or x.device.type != 'cpu' or _dtype(x) != torch.float32:
        return mixer(x)
    size = conv.kernel_size[0]
    large = size > 3 and size % 2
    return _apply(DepthwiseMixing, x, conv.weight, conv.bias) if large else mixer(x)


def _mlp(block: Any, x: Tensor, again: bool, mixed: Any = None, *projection: Any) -> Tensor:
    norm, mlp = block.norm2, block.mlp
    keep1, *rest = projection or (None,)
    return _apply(
        fast.Mlp, x, mixed, keep1, _keep(block, x), _norm(norm, True), ACTS[type(mlp.act)],
        again or x.shape[1] <= FEW_CHANNELS,
        _dtype(x), norm.weight, norm.bias, matrix(mlp.fc1), mlp.fc1.bias, matrix(mlp.fc2),
        mlp.fc2.bias, scale_of(block.layer_scale2), *rest,
    )  # fmt: skip


def _apply(function: Any, *args: Any) -> Tensor:
    """The function, which keeps nothing where no gradient is wanted."""
    wanted = torch.is_grad_enabled() and any(
        isinstance(a, Tensor) and a.requires_grad for a in args
    )
    if wanted:
        return function.apply(*args)
    with torch.no_grad():
        return function.forward(None, *args)


def _norm(norm: Any, counts: bool = False) -> Any:
    """What a norm computes; None for one of another kind. ``counts`` says that it is used now."""
    if getattr(norm, 'weight', None) is None or getattr(norm, 'bias', None) is None:
        return None
    if type(norm) in (nn.GroupNorm, GroupNorm1):
        return GroupNorm(norm.num_groups, norm.eps)
    if type(norm) is LayerNorm2d:
        return LayerNorm(norm.eps)
    if type(norm) is nn.BatchNorm2d and norm.momentum is not None and norm.track_running_stats:
        mean, var, batches = (buffer for _, buffer in norm.named_buffers())
        if counts and norm.training:
            batches.add_(1)
        return BatchNorm(mean, var, norm.training, norm.momentum, norm.eps)
    return None


def known(act: nn.Module) -> bool:
    """Whether an activation is one of those that fast forms compute."""
    return type(act) in ACTS and getattr(act, 'approximate', 'none') == 'none'


def known_mlp(mlp: Any) -> bool:
    """Whether an MLP is the plain one: two products with a known activation between."""
    return type(mlp) is Mlp and known(mlp.act) and _is_product(mlp.fc1) and _is_product(mlp.fc2)


def _known_scale(layer: nn.Module) -> bool:
    return type(layer) in (nn.Identity, LayerScale)


def _is_product(conv: nn.Module) -> bool:
    return type(conv) is nn.Conv2d and conv.bias is not None


def scale_of(layer: Any) -> Tensor | None:
    """Scale of a residual branch, (C,); None without one."""
    return layer.scale if isinstance(layer, LayerScale) else None


def conv_of(mixer: Any) -> nn.Conv2d | None:
    """Convolution that is all of a mixer; None of another mixer."""
    plain = type(mixer) is DepthwiseConv and type(mixer.conv) is nn.Conv2d
    return mixer.conv if plain else None


def matrix(conv: Any) -> Tensor:
    """Weight of a 1x1 convolution, (out, in)."""
    return conv.weight.flatten(1)


def _keep(block: Any, x: Tensor) -> Tensor | None:
    """Factor of a residual branch of each sample, (B, 1, 1, 1), as the block's layer draws it."""
    if type(block.drop_path) is nn.Identity or not block.drop_path.training:
        return None
    return block.drop_path(x.new_ones(len(x), 1, 1, 1))


def _dtype(x: Tensor) -> torch.dtype:
    """Of products: that of autocast, if it is on."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
