"""ConvMixer's block behind its convolution as an autograd function."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmpatch.fast.layout import channels_last, maps, tiles, tokens
from mmpatch.fast.parts import BatchNorm
from mmpatch.fast.products import ACTIVATIONS, linear, of_weight


class NormedMixing(torch.autograd.Function):
    """ConvMixer's block behind its convolution: ``norm2(act(linear(x + keep * norm1(act(u)))))``.

    Keeps the inputs of both activations. Everything between is elementwise, and made again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor | None,
        u: Tensor,
        keep: Tensor | None,
        norms: tuple[BatchNorm, BatchNorm],
        act: str,
        dtype: torch.dtype,
        own: bool,
        *parameters: Tensor,
    ) -> Tensor:
        """(B, C, H, W), twice -> (B, C, H, W); without a residual ``x`` is None.

        ``own`` says that nobody else needs ``u``: where nothing is kept the result overwrites it.
        """
        gamma1, beta1, w, b, gamma2, beta2 = parameters
        if ctx is None and keep is None and not any(norm.training for norm in norms):
            return _part_by_part(x, u, norms, act, dtype, own, *parameters)
        activate = ACTIVATIONS[act].forward
        y, *stats1 = norms[0].forward(activate(u), gamma1, beta1)
        y = _added(x, y, keep)
        v = maps(linear(tokens(y).to(dtype), w.to(dtype), b.to(dtype)), u)
        del y
        out, *stats2 = norms[1].forward(activate(v), gamma2, beta2)
        if ctx is not None:
            ctx.norms, ctx.act, ctx.dtype = norms, act, dtype
            ctx.save_for_backward(x, u, keep, v, *parameters, *stats1, *stats2)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """Gradients of the inputs of :meth:`forward`."""
        x, u, keep, v, gamma1, beta1, w, _, gamma2, _, *stats = ctx.saved_tensors
        stats1, stats2 = stats[:2], stats[2:]
        grad = channels_last(grad)
        (norm1, norm2), act = ctx.norms, ACTIVATIONS[ctx.act]
        dv, dgamma2, dbeta2 = norm2.backward(grad, act.forward(v), gamma2, *stats2)
        dv = tokens(act.backward(dv, v))
        a = act.forward(u)
        y = _added(x, norm1.again(a, gamma1, beta1, *stats1), keep)
        dw = of_weight(dv, tokens(y).to(ctx.dtype)).to(w.dtype)
        del y
        dy = maps(linear(dv, w.to(ctx.dtype).t()).to(u.dtype), u)
        du, dgamma1, dbeta1 = norm1.backward(dy if keep is None else dy * keep, a, gamma1, *stats1)
        return (
            None if x is None else dy, act.backward(du, u), *5 * (None,),
            dgamma1, dbeta1, dw, dv.sum(0).to(w.dtype), dgamma2, dbeta2,
        )  # fmt: skip


def _added(x: Tensor | None, branch: Tensor, keep: Tensor | None) -> Tensor:
    branch = branch if keep is None else branch * keep
    if x is None:
        return branch
    return branch.add_(x) if branch.dtype == x.dtype else x + branch


def _part_by_part(
    x: Tensor | None,
    u: Tensor,
    norms: tuple[BatchNorm, BatchNorm],
    act: str,
    dtype: torch.dtype,
    own: bool,
    *parameters: Tensor,
) -> Tensor:
    """The same with stored statistics, when tokens do not depend on each other."""
    gamma1, beta1, w, b, gamma2, beta2 = parameters
    scale1, shift1 = norms[0].affine(gamma1, beta1, *norms[0].stored())
    scale2, shift2 = norms[1].affine(gamma2, beta2, *norms[1].stored())
    flat_u, flat_x = tokens(u), None if x is None else tokens(x)
    out = flat_u if own else torch.empty_like(flat_u)
    v, c = w.to(dtype), b.to(dtype)
    for part in tiles(u, 4 * len(w)):  # there are four arrays of a part at a time
        y = ACTIVATIONS[act].forward(flat_u[part])
        torch.addcmul(shift1, y, scale1, out=y)
        if flat_x is not None:
            y = y.add_(flat_x[part]) if y.dtype == out.dtype else y + flat_x[part]
        z = linear(y.to(dtype), v, c, act)
        torch.addcmul(shift2, z.to(out.dtype), scale2, out=out[part])
    return maps(out, u)
