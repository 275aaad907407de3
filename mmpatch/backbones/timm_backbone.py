"""Any network of timm that has features, as a backbone."""

import inspect
import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import timm
import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from timm.models import group_parameters
from torch import Tensor, nn

from mmpatch.backbones.arguments import check_increasing
from mmpatch.backbones.base import Backbone
from mmpatch.checkpoint import Report
from mmpatch.checkpoint.load import read_checkpoint, unwrap
from mmpatch.checkpoint.match import compare_tensors, describe_problems
from mmpatch.registry import MODELS

SCHEME = 'timm://'
#: Arguments that let a network of timm take images of any size, where it has them.
ANY_SIZE = {'dynamic_img_size': True, 'strict_img_size': False}
#: Arguments of ``timm.create_model`` that this class sets itself, and what to use instead.
OWN = {
    'pretrained': "init_cfg=dict(type='Pretrained', checkpoint='timm://NAME.TAG')",
    'checkpoint_path': "init_cfg=dict(type='Pretrained', checkpoint=PATH)",
    'features_only': 'out_indices',
    'feature_cls': 'out_indices',
    'in_chans': 'in_channels',
}


@MODELS.register_module()
class TimmBackbone(Backbone):
    """``timm.create_model(model_name, features_only=True)`` as a backbone, equal in its features.

    Images of any size: networks that have ``dynamic_img_size`` or ``strict_img_size`` are made so
    that they take them, and zeros at the bottom and on the right complete the last patches of
    networks with a patch embedding, so their maps have ceil(H / stride) rows. Isotropic networks
    (ViTs) return maps of one stride, for :class:`mmpatch.necks.SimpleFeaturePyramid`.

    Args:
        model_name: Name in timm, such as 'resnet50' or 'vit_small_patch16_dinov3'. Weights are
            loaded by ``init_cfg``, so a tag behind the name only chooses defaults.
        out_indices: Features to return, increasing, as timm counts them: the stages of a pyramid,
            in many networks after a stem of stride 2; the blocks of an isotropic network. Later
            layers are not built, or not run.
        in_channels: Channels of the image.
        frozen_stages: -1 freezes nothing, 0 the stem, i the stem and the first i groups of timm's
            coarse ``group_matcher``: stages of a pyramid, blocks of an isotropic network. Modules
            whose parameters are all frozen stay in evaluation mode.
        norm_eval: Whether batch norms keep their statistics in training.
        with_cp: Whether activations are recomputed in the backward pass (timm's
            ``set_grad_checkpointing``). Batch norms inside then update their statistics twice.
        init_cfg: ``dict(type='Pretrained', checkpoint=...)`` loads ``timm://NAME.TAG``, a URL or a
            path strictly: see :func:`load_timm`.
        kwargs: Further arguments of ``timm.create_model``, such as ``drop_path_rate``, ``img_size``
            or ``patch_size``.

    Attributes:
        out_channels: Channels of each output.
        out_strides: Stride of each output with respect to the image.

    Raises:
        ValueError: If timm has no such network, it has no features, or an argument does not fit.
    """

    def __init__(
        self,
        model_name: str,
        out_indices: Sequence[int],
        *,
        in_channels: int = 3,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(init_cfg)
        if not timm.is_model(model_name):
            near = ', '.join(get_close_matches(model_name, timm.list_models())) or 'none is similar'
            raise ValueError(
                f'timm {timm.__version__} has no network {model_name!r} (names have no hf-hub: or '
                f'timm/ in front); near: {near}'
            )
        if own := sorted(OWN.keys() & kwargs.keys()):
            raise ValueError(f'TimmBackbone takes no {own[0]}; use {OWN[own[0]]}')
        settings = {'in_chans': in_channels, **kwargs}
        self.model_name, self._settings = model_name, settings
        whole = self.make_classifier()
        infos = getattr(whole, 'feature_info', None)
        if not infos or not hasattr(whole, 'prune_intermediate_layers'):
            raise ValueError(f'{model_name} has no features in timm {timm.__version__}')
        self.out_indices = check_increasing(
            f'{model_name}: out_indices', 'features', out_indices, len(infos)
        )
        accepted = inspect.signature(type(whole).__init__).parameters
        settings = {key: value for key, value in ANY_SIZE.items() if key in accepted} | settings
        # The getter keeps timm's names, leaves out the layers behind the last output, returns NCHW.
        features = {'features_only': True, 'feature_cls': 'getter', 'out_indices': self.out_indices}
        if not self.out_indices:
            raise ValueError(f'{model_name}: out_indices is empty')
        try:
            self.net: Any = timm.create_model(model_name, **features, **settings)
        except TypeError as error:  # an older way of timm to give features
            raise ValueError(f'{model_name} cannot be cut at features in timm: {error}') from error
        info = self.net.feature_info
        self.out_channels, self.out_strides = tuple(info.channels()), tuple(info.reduction())
        self.in_channels, self.norm_eval = in_channels, norm_eval
        embed: Any = getattr(whole, 'patch_embed', None)
        has_patches = hasattr(embed, 'feat_ratio')
        self.patch: tuple[int, int] = embed.feat_ratio(as_scalar=False) if has_patches else (1, 1)
        self._depths = self._group(whole, coarse=False)
        # Some networks of timm have no coarse groups.
        stages = {} if frozen_stages == -1 else self._group(whole, coarse=True)
        last = max(stages.values(), default=-1)
        if not -1 <= frozen_stages <= last:
            raise ValueError(f'{model_name}: frozen_stages={frozen_stages} is not in -1..{last}')
        self._frozen = {name for name, stage in stages.items() if stage <= frozen_stages}
        if with_cp:
            try:
                self.net.model.set_grad_checkpointing(True)
            except (AssertionError, AttributeError) as error:
                raise ValueError(
                    f'{model_name}: timm cannot recompute its activations; leave out with_cp'
                ) from error
        self._freeze()

    def load_file(self, **settings: Any) -> Report:
        """Load one file that ``init_cfg`` names: see :func:`load_timm`."""
        return load_timm(self, **settings)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, in_channels, H, W) -> one (B, C_i, about H / stride_i, W / stride_i) per output."""
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(
                f'TimmBackbone takes (B, {self.in_channels}, H, W), got {tuple(x.shape)}'
            )
        if not x.shape[0]:  # no images, which ViTs of timm cannot view
            return tuple(y[:0] for y in self(x.new_zeros(1, *x.shape[1:])))
        rows, columns = self.patch
        if max(self.patch) > 1:
            x = F.pad(x, (0, -x.shape[3] % columns, 0, -x.shape[2] % rows))
        return tuple(self.net(x))

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Depth of a parameter by timm's ``group_matcher``, for layer-wise learning rates.

        Args:
            param_name: Name in the state dict, behind ``prefix``.
            prefix: Such as 'backbone.'.

        Returns:
            The depth, 0 for the stem; and the number of depths, of which the last is left to the
            heads.

        Raises:
            ValueError: If timm groups no parameters of this network.
        """
        if not self._depths:
            raise ValueError(f'{self.model_name} has no group_matcher in timm, so no layer decay')
        name = param_name.removeprefix(prefix).removeprefix('net.model.')
        return self._depths[name], max(self._depths.values()) + 2

    def make_classifier(self) -> Any:
        """The whole network of timm, without memory: its names and shapes are those of files."""
        try:
            with torch.device('meta'):
                return timm.create_model(self.model_name, **self._settings)
        except RuntimeError as error:  # an unknown tag
            raise ValueError(f'{self.model_name}: {error}') from error

    def _group(self, whole: Any, coarse: bool) -> dict[str, int]:
        """Number of timm's group of each parameter of ``net.model``; empty if timm has none."""
        if not hasattr(whole, 'group_matcher'):
            return {}
        groups = group_parameters(whole, whole.group_matcher(coarse=coarse), reverse=True)
        return {name: groups[name] for name, _ in self.net.model.named_parameters()}

    def _freeze(self) -> None:
        """Freeze the chosen groups, batch statistics included."""
        for name in self._frozen:
            self.net.model.get_parameter(name).requires_grad_(False)
        for start, module in self.net.model.named_modules() if self._frozen else ():
            names = [f'{start}.{n}' if start else n for n, _ in module.named_parameters()]
            if names and self._frozen.issuperset(names):
                module.eval()


def load_timm(model: TimmBackbone, checkpoint: str | os.PathLike[str], prefix: str = '') -> Report:
    """Load a file of timm's, or one that timm converts, into a backbone: every tensor, or none.

    Files of the networks' authors (DINOv2, DINOv3, SAM, Swin and so on) are converted by timm's
    own ``checkpoint_filter_fn``, which also resamples positions and patch embeddings. Every tensor
    must then be one of timm's classifier of this name and these arguments, in name and shape; those
    of its head and of layers behind the last output are dropped. The report is logged.

    Args:
        model: Where to load it.
        checkpoint: ``timm://NAME.TAG`` for the file that timm would download, a URL, or a path.
        prefix: As in :func:`mmpatch.checkpoint.load_pretrained`.

    Raises:
        FileNotFoundError, OSError, pickle.UnpicklingError, RuntimeError: As there.
        ValueError: If a tensor is missing, unknown or misshapen, is of another kind or not finite;
            the message lists the culprits.
    """
    source = os.fspath(checkpoint)
    path = find_url(source) if source.startswith(SCHEME) else source
    # Files of detectors that were trained with this class have net.model. in their keys.
    prefixes = ('module.', 'backbone.', 'net.model.')
    tensors, report = unwrap(read_checkpoint(path), source, prefix, prefixes)
    report.layout = f'timm {model.model_name}'
    whole = model.make_classifier()
    converted, known = _convert(tensors, whole), whole.state_dict()
    kept = {tensor.untyped_storage().data_ptr() for tensor in converted.values()}
    report.dropped += (
        key
        for key, tensor in tensors.items()
        if key not in converted and tensor.untyped_storage().data_ptr() not in kept
    )
    wanted = model.net.model.state_dict()
    heads = _list_heads(whole)
    others = [name for name in converted if name not in wanted]
    unread = [name for name in others if name in known or name.startswith(heads)]
    report.dropped += unread
    for name in unread:
        converted.pop(name)
    # Files from before torch 0.4.1 have no counters of batches.
    counters = [name for name in wanted if name.endswith('num_batches_tracked')]
    report.new = [name for name in counters if name not in converted]
    wanted = {name: tensor for name, tensor in wanted.items() if name not in report.new}
    problems = compare_tensors(converted, wanted, 'tensors of the backbone')
    if text := describe_problems(problems):
        raise ValueError(f'{source} does not fit this TimmBackbone ({model.model_name}); {text}')
    both = [
        (name, tensors[name].shape, converted[name].shape) for name in wanted if name in tensors
    ]
    sizes = [(name, tuple(here), tuple(there)) for name, here, there in both if here != there]
    report.resampled = [f'{name} {here} -> {there}' for name, here, there in sizes]
    model.net.model.load_state_dict(converted, strict=False)
    report.matched = list(converted)
    print_log(str(report), logger='current')
    return report


def find_url(source: str) -> str:
    """Address of ``timm://NAME.TAG``, the file that timm would download; ValueError if none."""
    name = source.removeprefix(SCHEME)
    try:
        cfg = timm.get_pretrained_cfg(name)
    except RuntimeError as error:  # of an unknown tag
        raise ValueError(f'{source}: {error}') from error
    if cfg is not None and cfg.hf_hub_id:
        file = cfg.hf_hub_filename or 'model.safetensors'
        return f'https://huggingface.co/{cfg.hf_hub_id}/resolve/main/{file}'
    if cfg is None or not cfg.url:
        raise ValueError(f'{source}: timm {timm.__version__} knows no file of that name')
    return str(cfg.url)


def _convert(tensors: dict[str, Tensor], whole: nn.Module) -> dict[str, Tensor]:
    """Tensors by timm's names, as timm itself converts them; unchanged if it cannot."""
    convert = getattr(sys.modules[type(whole).__module__], 'checkpoint_filter_fn', None)
    try:
        return {**convert(dict(tensors), whole)} if convert else {**tensors}
    except Exception:  # made for files that fit; what does not fit is named afterwards
        return {**tensors}


def _list_heads(whole: Any) -> tuple[str, ...]:
    """How the names of a classifier's layers begin."""
    names = whole.pretrained_cfg.get('classifier') or ()
    return tuple(f'{name}.' for name in ([names] if isinstance(names, str) else names))
