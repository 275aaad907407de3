"""SMCA-DETR (https://arxiv.org/abs/2101.07448) with one scale, over mmdet's DETR."""

from typing import Any

import torch
from torch import Tensor, nn

from mmpatch.registry import MODELS


class SpatialPrior(nn.Module):
    """Logarithm of a Gaussian over the places of a map, for each query and head.

    A query predicts for each head an offset of the centre from the query's own, and the inverse
    height and width. As in ``models/transformer.py`` of gaopengcuhk/SMCA-DETR, ``dynamic_scale``
    'type3': ``-((scale_x * (x - centre_x))^2 + (scale_y * (y - centre_y))^2) / smooth``.

    Args:
        dim: Channels C of the queries.
        num_heads: Heads of the attention.
        smooth: Divisor of squared distances: the larger, the wider are all Gaussians.
    """

    def __init__(self, dim: int, num_heads: int, smooth: float = 8.0) -> None:
        super().__init__()
        self.smooth = smooth
        self.norm = nn.LayerNorm(dim)
        self.offset = nn.Linear(dim, 2 * num_heads)
        self.scale = nn.Linear(dim, 2 * num_heads)
        self.reset_scale()

    def reset_scale(self) -> None:
        """Start all Gaussians at the same size."""
        nn.init.zeros_(self.scale.weight)
        nn.init.ones_(self.scale.bias)

    def forward(self, query: Tensor, centre: Tensor, size: tuple[int, int]) -> Tensor:
        """Values to add to the logits of the attention.

        Args:
            query: (B, Q, C), states of the decoder plus their position embeddings.
            centre: (B, Q, 2), x and y in cells of the map; 0 is the middle of the first one.
            size: Height and width of the map.

        Returns:
            (B, heads, Q, height * width) float32, none above 0.
        """
        query = self.norm(query)
        centre = centre[:, :, None].float() + self.offset(query).unflatten(2, (-1, 2))
        scale = self.scale(query).unflatten(2, (-1, 2)).float()
        cells = [torch.arange(side, device=query.device) for side in (size[1], size[0])]
        x, y = (
            (scale[..., i, None] * (centre[..., i, None] - cells[i])).square() for i in range(2)
        )
        distance = (y[..., None] + x[..., None, :]).flatten(3)
        return -distance.transpose(1, 2) / self.smooth


class ModulatedDecoder(nn.Module):
    """The layers of a decoder of mmdet's DETR, whose attention to the map has a spatial prior.

    Args:
        decoder: ``DetrTransformerDecoder``; its parameters keep their names.
        smooth: Of :class:`SpatialPrior`.
        stride: Pixels of the image in a cell of the map.
    """

    def __init__(self, decoder: Any, smooth: float, stride: float) -> None:
        super().__init__()
        self.layers: Any = decoder.layers
        self.post_norm = decoder.post_norm
        self.stride = stride
        dim, heads = decoder.embed_dims, self.layers[0].cross_attn.num_heads
        self.priors: Any = nn.ModuleList(SpatialPrior(dim, heads, smooth) for _ in self.layers)
        hidden = [layer for _ in range(2) for layer in (nn.Linear(dim, dim), nn.ReLU())]
        self.reference = nn.Sequential(*hidden, nn.Linear(dim, 2))

    def forward(
        self,
        query: Tensor,
        query_pos: Tensor,
        memory: Tensor,
        memory_pos: Tensor,
        memory_mask: Tensor | None,
        size: tuple[int, int],
        image_sizes: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Run the layers.

        Args:
            query: (B, Q, C).
            query_pos: (B, Q, C), position embeddings of the queries.
            memory: (B, height * width, C), output of the encoder.
            memory_pos: (B, height * width, C), position embeddings of the map.
            memory_mask: (B, height * width) bool, true where the image is padded; None for nowhere.
            size: Height and width of the map.
            image_sizes: (B, 2), width and height of each image without padding, in pixels.

        Returns:
            States (layers, B, Q, C), and centres (B, Q, 2) as x and y, from 0 to 1 in the image.
        """
        reference = self.reference(self.priors[0].norm(query + query_pos)).sigmoid()
        centre = reference * image_sizes[:, None] / self.stride
        states = []
        for layer, prior in zip(self.layers, self.priors, strict=True):
            logits = prior(query + query_pos, centre, size)
            if memory_mask is not None:  # torch wants both masks in one type
                logits = logits.masked_fill(memory_mask[:, None, None], -torch.inf)
            query = layer(
                query,
                key=memory,
                value=memory,
                query_pos=query_pos,
                key_pos=memory_pos,
                cross_attn_mask=logits.flatten(0, 1).to(query.dtype),
            )
            states.append(self.post_norm(query))
        return torch.stack(states), reference


@MODELS.register_module(name='SMCADETR')
def build_smca_detr(**settings: Any) -> Any:
    """Build mmdet's DETR with a :class:`ModulatedDecoder`; its boxes start from the centres.

    Args:
        **settings: Of mmdet's ``DETR``, and ``smooth`` (8) and ``stride`` (32) of the decoder. The
            head must take ``references``, as ``ConditionalDETRHead`` does.
    """
    # mmdet may not be imported before the first use
    from mmpatch.heads.smca_detr import SMCADETR

    return SMCADETR(**settings)
