"""The detector of :func:`mmpatch.heads.smca.build_smca_detr`. Importing it imports mmdet."""

from typing import Any

import torch
from mmdet.models.detectors import DETR
from torch import Tensor

from mmpatch.heads.smca import ModulatedDecoder


class SMCADETR(DETR):
    """mmdet's DETR with a :class:`ModulatedDecoder`.

    Args:
        *args: Of mmdet's ``DETR``, like ``**kwargs``.
        smooth: Of :class:`mmpatch.heads.smca.SpatialPrior`.
        stride: Pixels of the image in a cell of the backbone's last map.
    """

    decoder: Any

    def __init__(self, *args: Any, smooth: float = 8.0, stride: float = 32, **kwargs: Any) -> None:
        self.smooth, self.stride = smooth, stride  # DETR builds all layers at once
        super().__init__(*args, **kwargs)

    def _init_layers(self) -> None:
        super()._init_layers()
        self.decoder = ModulatedDecoder(self.decoder, self.smooth, self.stride)

    def init_weights(self) -> None:
        """Initialise as DETR, then start all Gaussians at the same size."""
        super().init_weights()
        for prior in self.decoder.priors:
            prior.reset_scale()

    def pre_transformer(self, img_feats: Any, batch_data_samples: Any = None) -> Any:
        """Add the sizes of images and map to the inputs of the decoder.

        Raises:
            ValueError: If the map has another stride than ``stride``.
        """
        encoder, decoder = super().pre_transformer(img_feats, batch_data_samples)
        size = tuple(img_feats[-1].shape[2:])
        padded = batch_data_samples[0].batch_input_shape
        cells = [side / self.stride for side in padded]
        if any(abs(a - b) > 1 for a, b in zip(cells, size, strict=True)):
            raise ValueError(
                f'model.stride={self.stride}, but images of {padded} have maps of {size}: set '
                "model.stride to the stride of the neck's output"
            )
        sizes = [sample.img_shape[1::-1] for sample in batch_data_samples]
        decoder['image_sizes'] = img_feats[-1].new_tensor(sizes, dtype=torch.float32)
        decoder['size'] = size
        return encoder, decoder

    def forward_decoder(self, **inputs: Any) -> dict[str, Tensor]:
        """Run the decoder; the head takes its states and the centres."""
        states, references = self.decoder(**inputs)
        return {'hidden_states': states, 'references': references}
