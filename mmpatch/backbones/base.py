"""What all backbones share: weights that load strictly, and frozen parts."""

from inspect import signature
from typing import Any

from mmengine.model import BaseModule
from torch.nn.modules.batchnorm import _BatchNorm

from mmpatch.checkpoint import Report, load_init_cfg, load_pretrained


class Backbone(BaseModule):
    """A module of MMEngine with frozen parts.

    Attributes:
        norm_eval: Whether batch norms keep their statistics in training.
        settings: Arguments that it was made with, by name.
    """

    norm_eval: bool
    settings: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Keep the arguments."""
        model = super().__new__(cls)
        names = list(signature(cls).parameters)
        model.__dict__['settings'] = {**dict(zip(names, args, strict=False)), **kwargs}
        return model

    def init_weights(self) -> None:
        """Load the files that ``init_cfg`` names strictly; any other ``init_cfg`` is MMEngine's."""
        if not load_init_cfg(self, type(self).load_file):
            super().init_weights()

    def load_file(self, **settings: Any) -> Report:
        """Load one file that ``init_cfg`` names: see :func:`mmpatch.checkpoint.load_pretrained`."""
        return load_pretrained(self, **settings)

    def train(self, mode: bool = True) -> Any:
        """Set the mode, but keep frozen parts, and batch norms with ``norm_eval``, in eval mode."""
        super().train(mode)
        self._freeze()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def _freeze(self) -> None:
        """Freeze what the settings say, batch statistics included."""
        raise NotImplementedError
