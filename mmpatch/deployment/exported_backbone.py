"""A backbone that runs an exported file."""

from pathlib import Path
from typing import Any

from mmengine.model import BaseModule
from torch import Tensor

from mmpatch.deployment.export import digest
from mmpatch.deployment.files import ExportError, first_line, read_file
from mmpatch.registry import MODELS


@MODELS.register_module()
class ExportedBackbone(BaseModule):
    """An exported backbone, or backbone with neck, in a model of mmdet or mmseg, to evaluate it.

    A file of a backbone takes the place of the backbone. A file of a backbone with neck takes the
    place of both: set ``neck=None``. The weights are in the file; if a checkpoint has weights of a
    backbone, too, they must be the same. Those of a neck are not compared.

    Args:
        file: What :func:`mmpatch.export` wrote.
        init_cfg: None, since the file has the weights.

    Attributes:
        metadata: What the file says of itself.
        out_channels, out_strides: Of the outputs.

    Raises:
        ExportError: If the file cannot be read, holds a whole model, normalises pixels itself (the
            host has done so already), or is asked to train.
    """

    def __init__(self, file: str, init_cfg: None = None) -> None:
        super().__init__(None)
        if init_cfg is not None:
            raise ExportError(f'ExportedBackbone takes no init_cfg: the weights are in {file}')
        self.file = Path(file)
        self.metadata, self.run = read_file(file)
        if self.metadata['kind'] not in ('backbone', 'pyramid'):
            raise ExportError(
                f'{file} is a whole {self.metadata["kind"]}; export its backbone, or its backbone '
                'with neck (--part backbone, --part pyramid)'
            )
        if 'range' in (self.metadata['input'] or {}):
            raise ExportError(
                f'{file} normalises pixels, which the data preprocessor does already; export it '
                'without normalize'
            )
        self.out_channels = tuple(self.metadata['out_channels'])
        self.out_strides = tuple(self.metadata['out_strides'])

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, C, H, W) -> one (B, C_i, H_i, W_i) per output, with x's device and dtype.

        Raises:
            ExportError: In training mode, or if the file does not run at this size.
        """
        if self.training:
            raise ExportError(f'{self.file} is for inference only and cannot be trained')
        try:
            outs = self.run(x.detach().float().cpu().contiguous())
        except Exception as error:  # engines raise what they like
            shape, size = ('x'.join(map(str, s)) for s in (x.shape, self.metadata['input_size']))
            free = ', '.join(self.metadata['dynamic'])
            free = f'with {free} dynamic' if free else 'with all dimensions fixed'
            raise ExportError(
                f'{self.file} does not run at {shape}: it was exported at {size}, {free} '
                f'({first_line(error)})'
            ) from error
        return tuple(out.to(x) for out in outs)

    def init_weights(self) -> None:
        """Do nothing: the weights are in the file."""

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        """Check that the weights of a checkpoint are those of the file."""
        names = [name for name in state_dict if name.startswith(prefix)]
        tensors = [state_dict.pop(name) for name in names]
        if tensors and digest(tensors) != self.metadata['weights']:
            raise ExportError(
                f"the checkpoint's backbone weights differ from those in {self.file}; export this "
                'checkpoint again'
            )
