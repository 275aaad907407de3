"""Residual branches that keep for the backward pass only what cannot be made again cheaply.

Autograd keeps the output of every norm, activation and scale. These keep the input of the branch
and, unless told to make it again, the input of the activation: norms and activations are made again
from them, and the gradient of a scale follows from that of the product before it. On a CPU an MLP
runs some tokens at a time, so that its hidden values stay in the cache. All maps that come in lie
in channels_last memory.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmpatch.fast.layout import channels_last, maps, tiles, tokens
from mmpatch.fast.parts import Norm
from mmpatch.fast.products import ACTIVATIONS, linear, of_weight


class Pool(torch.autograd.Function):
    """``x + keep * scale * (pool(norm(x)) - norm(x))`` for a group norm of one group.

    Pooling that does not count the border keeps constants, so the norm's mean and bias cancel, and
    what is left of it is a factor: ``x + factor * (pool(x) - x)`` with one factor for each sample
    and channel. The gradient of the factor comes from the transposed mixing of the output's
    gradient, which that of the input needs anyway: ``<dy, D x> = <D' dy, x>``.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, keep: Any, size: int, eps: float, weight: Tensor, bias: Any, scale: Any
    ) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W); ``keep`` is None or (B, 1, 1, 1).

        The bias is there for its gradient of zero, which distributed training waits for.
        """
        batch, channels, height, width = x.shape
        _, mean, rstd = torch.native_group_norm(
            x, None, None, batch, channels, height * width, 1, eps
        )
        pooled = F.avg_pool2d(x, size, 1, size // 2, count_include_pad=False)
        if ctx is not None:
            ctx.size = size
            ctx.save_for_backward(x, keep, mean, rstd, weight, scale)
        return torch.lerp(x, pooled, _factor(rstd, weight, scale, keep), out=pooled)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """Gradients of the inputs of :meth:`forward`."""
        grad = channels_last(grad)
        x, keep, mean, rstd, weight, scale = ctx.saved_tensors
        window = [ctx.size, ctx.size], [1, 1], [ctx.size // 2, ctx.size // 2]
        mixed = torch.ops.aten.avg_pool2d_backward(grad, x, *window, False, False, None).sub_(grad)
        of_factor = (x * mixed).sum((2, 3))
        if keep is not None:
            of_factor *= keep.view(-1, 1)
        of_weight = (of_factor * rstd).sum(0)
        of_rstd = of_factor @ (weight if scale is None else weight * scale)
        dx = torch.addcmul(grad, mixed, _factor(rstd, weight, scale, keep))
        # d rstd / d x is -rstd^3 (x - mean) over the number of values.
        step = (-(rstd**3) * of_rstd[:, None] / x[0].numel()).view(-1, 1, 1, 1)
        dx.addcmul_(x, step).sub_(step * mean.view(-1, 1, 1, 1))
        grads = dx, None, None, None
        if scale is None:
            return *grads, of_weight, torch.zeros_like(weight), None
        return *grads, of_weight * scale, torch.zeros_like(weight), of_weight * weight


def _factor(rstd: Tensor, weight: Tensor, scale: Tensor | None, keep: Tensor | None) -> Tensor:
    """(B, C, 1, 1)."""
    factor = rstd * (weight if scale is None else weight * scale)
    factor = factor[:, :, None, None]
    return factor if keep is None else factor * keep


class NormedLinear(torch.autograd.Function):
    """Product of normalised tokens, such as queries, keys and values."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, norm: Norm, dtype: torch.dtype, gamma: Any, beta: Any, w: Any, b: Any
    ) -> Tensor:
        """(B, C, H, W) -> (B, H * W, out)."""
        normed, *stats = norm.forward(x, gamma, beta)
        if ctx is not None:
            ctx.norm, ctx.dtype = norm, dtype
            ctx.save_for_backward(x, gamma, beta, w, b, *stats)
        bias = None if b is None else b.to(dtype)
        return linear(tokens(normed).to(dtype), w.to(dtype), bias).unflatten(0, (len(x), -1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """Gradients of the inputs of :meth:`forward`."""
        x, gamma, beta, w, b, *stats = ctx.saved_tensors
        n, g = tokens(ctx.norm.again(x, gamma, beta, *stats)).to(ctx.dtype), grad.flatten(0, 1)
        dn = linear(g, w.to(ctx.dtype).t()).to(x.dtype)
        dx, dgamma, dbeta = ctx.norm.backward(maps(dn, x), x, gamma, *stats)
        db = None if b is None else g.sum(0).to(b.dtype)
        return dx, None, None, dgamma, dbeta, of_weight(g, n).to(w.dtype), db


class Mlp(torch.autograd.Function):
    """``y + keep * scale * mlp(norm(y))`` where y is x, or x plus a projection of mixed tokens.

    That projection, ``keep1 * scale1 * (mixed W + b)``, is made again in the backward pass, so that
    y need not be kept beside x and the mixed tokens.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        mixed: Tensor | None,
        keep1: Tensor | None,
        keep: Tensor | None,
        norm: Norm,
        act: str,
        again: bool,
        dtype: torch.dtype,
        *parameters: Any,
    ) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W).

        Args:
            ctx: None where no gradient is wanted.
            x: Input.
            mixed: (B, H * W, C), or None where y is x.
            keep1: Factor of the projection, (B, 1, 1, 1), or None for 1.
            keep: The same for the MLP.
            norm: Its statistics.
            act: A key of ``ACTIVATIONS``.
            again: Whether the hidden tokens are made again in the backward pass, not kept.
            dtype: Of the products, as under autocast.
            *parameters: weight and bias of the norm, of the first and of the second product, and a
                scale or None; then weight, bias and scale of the projection, or None. Products are
                matrices.
        """
        gamma, beta, w1, b1, w2, b2, scale, *projection = parameters
        y = _project(x, mixed, keep1, dtype, *projection)
        normed, *stats = norm.forward(y, gamma, beta)
        n, flat = tokens(normed), tokens(y)
        out = torch.empty_like(flat)
        hidden = []
        factor = _of_tokens(keep, x)
        v1, c1, v2, c2 = (p.to(dtype) for p in (w1, b1, w2, b2))
        for part in tiles(x, len(w1)):
            m = n[part].to(dtype)
            if ctx is None or again:
                a = linear(m, v1, c1, act)
            else:
                hidden.append(linear(m, v1, c1))
                a = ACTIVATIONS[act].forward(hidden[-1])
            z = linear(a, v2, c2)
            if factor is not None:
                z = z * factor[part]
            if scale is None:
                torch.add(flat[part], z, out=out[part])
            else:
                torch.addcmul(flat[part], z.to(x.dtype), scale, out=out[part])
        if ctx is not None:
            ctx.norm, ctx.act, ctx.dtype, ctx.count = norm, act, dtype, len(parameters)
            ctx.save_for_backward(x, mixed, keep1, keep, *parameters, *stats, *hidden)
        return maps(out, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """Gradients of the inputs of :meth:`forward`."""
        x, mixed, keep1, keep, *rest = ctx.saved_tensors
        gamma, beta, w1, b1, w2, b2, scale, *projection = rest[: ctx.count]
        mean, rstd, *hidden = rest[ctx.count :]
        norm, act, dtype = ctx.norm, ACTIVATIONS[ctx.act], ctx.dtype
        grad = channels_last(grad)
        y = _project(x, mixed, keep1, dtype, *projection)
        n, g = tokens(norm.again(y, gamma, beta, mean, rstd)), tokens(grad)
        factor = _of_tokens(keep, x)
        v1, c1, v2 = w1.to(dtype), b1.to(dtype), w2.to(dtype)
        dn = torch.empty_like(n)
        dw1, db1, dw2, db2 = (torch.zeros_like(p) for p in (w1, b1, w2, b2))
        for i, part in enumerate(tiles(x, len(w1))):
            m, dz = n[part].to(dtype), g[part]
            if factor is not None:
                dz = dz * factor[part]
            h = hidden[i] if hidden else linear(m, v1, c1)
            da = linear((dz if scale is None else dz * scale).to(dtype), v2.t())
            dw2 += of_weight(dz.to(dtype), act.forward(h))
            db2 += dz.sum(0)
            dh = act.backward(da, h)
            dw1 += of_weight(dh, m)
            db1 += dh.sum(0)
            dn[part] = linear(dh, v1.t())
        dy, dgamma, dbeta = norm.backward(maps(dn, x), y, gamma, mean, rstd)
        dy = dy.add_(grad)
        second = _unscaled(dw2, db2, w2, b2, scale)
        dmixed: Any = None
        of_projection: Any = ()
        if mixed is not None:
            w, b, scale1 = projection
            dz = tokens(dy if keep1 is None else dy * keep1)
            da = linear((dz if scale1 is None else dz * scale1).to(dtype), w.to(dtype).t())
            dmixed = da.view(mixed.shape).to(mixed.dtype)
            dw = of_weight(dz.to(dtype), mixed.flatten(0, 1).to(dtype)).to(w.dtype)
            of_projection = _unscaled(dw, dz.sum(0), w, b, scale1)
        affine = dgamma, dbeta, dw1, db1
        return dy, dmixed, *6 * (None,), *affine, *second, *of_projection


def _project(
    x: Tensor,
    mixed: Tensor | None,
    keep: Tensor | None,
    dtype: torch.dtype,
    w: Any = None,
    b: Any = None,
    scale: Any = None,
) -> Tensor:
    """``x + keep * scale * (mixed W + b)``; x itself without mixed tokens."""
    if mixed is None:
        return x
    z = maps(linear(mixed.flatten(0, 1).to(dtype), w.to(dtype), b.to(dtype)), x)
    if keep is not None:
        z = z * keep
    return x + z if scale is None else torch.addcmul(x, z.to(x.dtype), scale.view(-1, 1, 1))


def _unscaled(
    dw: Tensor, db: Tensor, w: Tensor, b: Tensor, scale: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of weight, bias and scale of ``scale * (a W + b)`` from those of scale 1."""
    if scale is None:
        return dw, db, None
    dscale = torch.linalg.vecdot(dw, w) + db * b
    return dw.mul_(scale[:, None]), db * scale, dscale


def _of_tokens(keep: Tensor | None, x: Tensor) -> Tensor | None:
    """(B, 1, 1, 1) -> (B * H * W, 1)."""
    if keep is None:
        return None
    return keep.view(-1, 1).expand(-1, x.shape[2] * x.shape[3]).reshape(-1, 1)
