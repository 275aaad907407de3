"""Products of tokens, and activations with their gradients.

oneDNN's products serve float32 on a CPU: they add a bias and apply an activation in the same pass,
read transposed matrices as they lie, and on some CPUs take half the time of those behind
``torch.addmm`` (docs/performance.md).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

aten = torch.ops.aten
AVAILABLE = torch.backends.mkldnn.is_available()


class Activation(NamedTuple):
    """An activation, and its gradient from that of its output and its input.

    The gradient overwrites the one that comes in: fresh memory costs more than the arithmetic.
    """

    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor], Tensor]


#: By the names that oneDNN's operators know.
ACTIVATIONS = {
    'none': Activation(lambda x: x, lambda grad, x: grad),
    'gelu': Activation(F.gelu, lambda grad, x: aten.gelu_backward(grad, x, grad_input=grad)),
    'relu': Activation(
        F.relu, lambda grad, x: aten.threshold_backward(grad, x, 0, grad_input=grad)
    ),
    'swish': Activation(F.silu, lambda grad, x: aten.silu_backward(grad, x, grad_input=grad)),
}


def onednn(x: Tensor) -> bool:
    """Whether oneDNN's operators serve: not inside a graph, which fuses by itself."""
    return (
        not torch.compiler.is_compiling()
        and AVAILABLE
        and bool(torch.backends.mkldnn.enabled)
        and x.device.type == 'cpu'
        and x.dtype == torch.float32
        and not torch.jit.is_tracing()
        and not torch.is_grad_enabled()
    )


def attributes(act: str) -> tuple[str, list[float], str]:
    """An activation as oneDNN's operators take it: name, numbers, algorithm."""
    return act, [], 'none' if act == 'gelu' else ''


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, act: str = 'none') -> Tensor:
    """(..., in) and (out, in) -> ``act(x W + b)``, (..., out)."""
    if onednn(x):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, *attributes(act))
    return ACTIVATIONS[act].forward(F.linear(x, weight, bias))


def of_weight(grad: Tensor, x: Tensor) -> Tensor:
    """Gradient of a weight, (out, in), from that of the result (n, out) and the input (n, in)."""
    if grad.shape[1] > x.shape[1]:  # oneDNN is faster with the narrow one first
        return linear(x.t(), grad.t()).t()
    return linear(grad.t(), x.t())
