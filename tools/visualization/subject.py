"""What is looked at: a network with its weights, and a photograph as it sees it."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.logging import MMLogger
from mmengine.runner import load_checkpoint
from torch import Tensor

from mmpatch.backbones import TimmBackbone
from mmpatch.backbones.base import Backbone
from mmpatch.checkpoint import load_whole
from mmpatch.checkpoint.published import IMAGENET_STATS, SCHEME, find_published
from mmpatch.engine.build import build_network, read_network

#: Sides of pictures are multiples of this.
MULTIPLE = 32


@dataclass
class Subject:
    """A network, and how pictures become its input."""

    name: str
    cfg: Any
    model: Any  # detector, segmentor or backbone
    weights: str
    mean: Tensor
    std: Tensor
    rgb: bool

    @property
    def backbone(self) -> Any:
        """The backbone, which may be all there is."""
        return getattr(self.model, 'backbone', self.model)

    @property
    def title(self) -> str:
        """What every picture says of it."""
        return f'{self.name}, {self.weights}'

    def prepare(self, photo: np.ndarray) -> Tensor:
        """RGB picture (H, W, 3) of bytes -> input (1, 3, H, W)."""
        channels = photo if self.rgb else photo[..., ::-1]
        x = torch.from_numpy(np.ascontiguousarray(channels)).permute(2, 0, 1).float()
        return ((x - self.mean) / self.std)[None]


def load_subject(
    network: str,
    checkpoint: str | None = None,
    options: dict[str, Any] | None = None,
    seed: int = 0,
    change: Callable[[Any], None] | None = None,
) -> Subject:
    """Build a network with the weights of a file, or random ones; ``change`` edits its config.

    Raises:
        SystemExit: If the network or the file is unknown or they do not fit, in one line.
    """
    torch.manual_seed(seed)
    cfg = read_network(network, options)
    if change and 'model' in cfg:
        change(cfg)
    try:
        model = build_network(cfg)
        # A name of published weights, or a folder, brings its own.
        checkpoint = checkpoint or (cfg.get('backbone', {}).get('init_cfg') or {}).get('checkpoint')
        if checkpoint is None and 'model' in cfg:
            with _without_log():
                model.init_weights()
        elif checkpoint is not None:
            load_weights(model, checkpoint)
    except Exception as error:  # of any kind: files and parts of the hosts raise what they like
        reason = ' '.join(str(error).split())[:400]
        sys.exit(f'error: {network}: {type(error).__name__}: {reason}')
    mean, std, rgb = find_stats(model, network)
    name = Path(network.removesuffix('.py')).name if 'model' in cfg else network
    weights = f'weights of {Path(checkpoint).name}' if checkpoint else 'random weights'
    return Subject(name, cfg, model.eval(), weights, mean, std, rgb)


@contextmanager
def _without_log() -> Iterator[None]:
    """Within it, MMEngine does not tell how every tensor was initialised."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel('WARNING')
    try:
        yield
    finally:
        logger.setLevel(level)


def load_weights(model: Any, checkpoint: str) -> None:
    """Load a whole detector or segmentor, or a backbone, every tensor of it."""
    if isinstance(model, Backbone):
        model.load_file(checkpoint=checkpoint)
    elif hasattr(model, 'backbone'):
        load_whole(model, checkpoint)
    else:
        load_checkpoint(model, checkpoint, map_location='cpu', strict=True)


def find_stats(model: Any, network: str) -> tuple[Tensor, Tensor, bool]:
    """Mean and deviation of the pixels, (3, 1, 1) each, and whether they are of RGB."""
    if hasattr(model, 'data_preprocessor'):
        of = model.data_preprocessor
        converted = getattr(of, '_channel_conversion', getattr(of, 'channel_conversion', False))
        return of.mean, of.std, bool(converted)  # the hosts read BGR
    mean, std = IMAGENET_STATS
    if network.startswith(SCHEME):
        mean, std = find_published(network).normalisation
    if isinstance(model, TimmBackbone):
        cfg = model.make_classifier().pretrained_cfg
        mean, std = ([255 * value for value in cfg[key]] for key in ('mean', 'std'))
    return torch.tensor(mean).view(3, 1, 1), torch.tensor(std).view(3, 1, 1), True


def read_photo(file: str | None, size: int, seed: int = 0) -> np.ndarray:
    """Read or generate a picture (H, W, 3) of RGB bytes; its shorter side becomes about ``size``.

    Raises:
        SystemExit: If the file is no picture.
    """
    if file is None:
        from make_toy_data import object_scene

        picture: Any = object_scene(np.random.default_rng(seed))[0].clip(0, 255).astype(np.uint8)
    else:
        picture = cv2.imread(file)
        if picture is None:
            sys.exit(f'error: {file} is no picture, or does not exist')
    scale = size / min(picture.shape[:2])
    height, width = (max(round(n * scale / MULTIPLE), 1) * MULTIPLE for n in picture.shape[:2])
    resized = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(resized[..., ::-1])
