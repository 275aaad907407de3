"""How published files name their tensors: one table a layout, in which every key must be found.

Targets are names of this package, or, for isotropic networks, ``blocks.N.`` with N counted through
all stages, which :func:`mmpatch.checkpoint.load_pretrained` places into the model's stages.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from mmpatch.checkpoint.vit import Grid, from_npz, split_positions, with_patch_bias

Target = str | Callable[[re.Match[str]], str] | None
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Layout:
    """Renaming of one published layout to the names of this package.

    Attributes:
        name: Shown in the loading report.
        family: Class of the networks in such files; None for any.
        marker: Pattern of keys with which only files of this layout come.
        rules: Pattern of a whole key -> its new name, as an ``re`` template or a function of the
            match, or None to drop it. The first rule that matches counts.
        prepare: What is done to the tensors before the rules, where renaming does not suffice; it
            is given the grid of the model's positions, too.
        classifier: What else is done to a file that a classifier may have come from.
    """

    name: str
    family: str | None
    marker: str
    rules: tuple[tuple[str, Target], ...]
    prepare: Callable[[Tensors, Grid], Tensors] | None = None
    classifier: Callable[[Tensors], Tensors] | None = None

    def recognises(self, tensors: Tensors) -> bool:
        """Whether some key is one with which only files of this layout come."""
        return any(re.fullmatch(self.marker, key) for key in tensors)

    def rename(self, key: str) -> str | None:
        """New name of a key, or None if a rule drops it.

        Raises:
            KeyError: If no rule matches the key.
        """
        for pattern, target in self.rules:
            match = re.fullmatch(pattern, key)
            if match:
                return match.expand(target) if isinstance(target, str) else target and target(match)
        raise KeyError(key)


def _stage(template: str, divide: int = 1, shift: int = 0) -> Callable[[re.Match[str]], str]:
    """Target whose ``{}`` is a number: the first group, shifted, then divided."""

    def target(match: re.Match[str]) -> str:
        return match.expand(template.format((int(match[1]) + shift) // divide))

    return target


MMPATCH = Layout(
    'mmpatch or timm MetaFormer',
    None,
    r'stages\.0\.blocks\.0\..+',
    ((r'(stem|positions|stages|out_norms)\..+', r'\g<0>'), (r'head\..+', None)),
)


def _classifier_norm(tensors: Tensors) -> Tensors:
    """Where ``norm6`` stands alone it is the classifier's norm, as mmpretrain names it."""
    if 'norm4.weight' in tensors:
        return tensors
    return {re.sub(r'^norm6\.', 'norm.', key): tensor for key, tensor in tensors.items()}


# network.0, 2, 4, 6 are stages, network.1, 3, 5 the downsampling before the next stage.
POOLFORMER = Layout(
    'sail-sg/poolformer',
    'PoolFormer',
    r'network\.0\.0\..+',
    (
        (r'patch_embed\.proj\.(.+)', r'stem.conv.\1'),
        (r'network\.([135])\.proj\.(.+)', _stage(r'stages.{}.downsample.conv.\2', 2, 1)),
        (
            r'network\.([0246])\.(\d+)\.layer_scale_([12])',
            _stage(r'stages.{}.blocks.\2.layer_scale\3.scale', 2),
        ),
        (
            r'network\.([0246])\.(\d+)\.((?:norm[12]|mlp\.fc[12])\..+)',
            _stage(r'stages.{}.blocks.\2.\3', 2),
        ),
        (r'norm([0246])\.(.+)', _stage(r'out_norms.{}.\2', 2)),
        (r'(norm|head)\.(weight|bias)', None),
    ),
    classifier=_classifier_norm,
)

CONTAINER = Layout(
    'allenai/container',
    'Container',
    r'patch_embed1\.proj\.weight',
    (
        (r'patch_embed1\.proj\.(.+)', r'stem.conv.\1'),
        (r'patch_embed1\.norm\.(.+)', r'stem.norm.\1'),
        (r'patch_embed([234])\.proj\.(.+)', _stage(r'stages.{}.downsample.conv.\2', 1, -1)),
        (r'patch_embed([234])\.norm\.(.+)', _stage(r'stages.{}.downsample.norm.\2', 1, -1)),
        *(
            (rf'blocks([1-4])\.(\d+)\.{theirs}', _stage(rf'stages.{{}}.blocks.\2.{ours}', 1, -1))
            for theirs, ours in (
                (r'pos_embed\.(.+)', r'pos_embed.conv.\3'),
                (r'conv1\.(.+)', r'token_mixer.qkv.\3'),
                (r'(?:attn|conv)\.(.+)', r'token_mixer.static.conv.\3'),
                (r'conv2\.(.+)', r'token_mixer.proj.\3'),
                (r'sa_weight', r'token_mixer.gate'),
                (r'((?:norm[12]|mlp\.fc[12])\..+)', r'\3'),
            )
        ),
        (r'(norm|head)\..+', None),
    ),
)

HUGGING_FACE_POOLFORMER = Layout(
    'Hugging Face PoolFormer',
    'PoolFormer',
    r'poolformer\.encoder\.patch_embeddings\.0\.projection\.weight',
    (
        (r'poolformer\.encoder\.patch_embeddings\.0\.projection\.(.+)', r'stem.conv.\1'),
        (
            r'poolformer\.encoder\.patch_embeddings\.([123])\.projection\.(.+)',
            r'stages.\1.downsample.conv.\2',
        ),
        *(
            (rf'poolformer\.encoder\.block\.(\d)\.(\d+)\.{theirs}', rf'stages.\1.blocks.\2.{ours}')
            for theirs, ours in (
                (r'before_norm\.(.+)', r'norm1.\3'),
                (r'after_norm\.(.+)', r'norm2.\3'),
                (r'output\.conv([12])\.(.+)', r'mlp.fc\3.\4'),
                (r'layer_scale_([12])', r'layer_scale\3.scale'),
            )
        ),
        (r'(poolformer\.norm|classifier)\..+', None),
    ),
)


def _convmixer(name: str, stem: str, blocks: str, head: str, first: int = 0) -> Layout:
    """ConvMixer, by patterns in front of its stem and blocks, of its head, and its first block."""
    return Layout(
        name,
        'ConvMixer',
        rf'{blocks}{first}\.0\.fn\.0\.weight',
        (
            (rf'{stem}0\.(weight|bias)', r'stem.conv.\1'),
            (rf'{stem}2\.(.+)', r'stem.norm.\1'),
            *(
                (rf'{blocks}(\d+)\.{theirs}\.(.+)', _stage(rf'blocks.{{}}.{ours}.\2', 1, -first))
                for theirs, ours in (
                    (r'0\.fn\.0', 'token_mixer.conv'),
                    (r'0\.fn\.2', 'norm1'),
                    ('1', 'mlp'),
                    ('3', 'norm2'),
                )
            ),
            (head, None),
        ),
    )


VIT_RULES: tuple[tuple[str, Target], ...] = (
    (r'positions\..+', r'\g<0>'),
    (r'patch_embed\.proj\.(.+)', r'stem.conv.\1'),
    (r'blocks\.(\d+)\.(norm[12]\..+|mlp\.fc[12]\..+)', r'\g<0>'),
    (r'blocks\.(\d+)\.attn\.((?:qkv|proj)\..+)', r'blocks.\1.token_mixer.\2'),
    (r'blocks\.(\d+)\.attn\.rel_pos_([hw])', r'blocks.\1.token_mixer.rel_pos.\2'),
    (r'blocks\.(\d+)\.ls([12])\.gamma', r'blocks.\1.layer_scale\2.scale'),
    # the ResNet of a hybrid, whose stem stands in a module of its own unless it is alone
    (r'patch_embed\.backbone\.(?:stem\.)?conv\.(.+)', r'stem.root.\1'),
    (r'patch_embed\.backbone\.(?:stem\.)?norm\.(.+)', r'stem.root_norm.\1'),
    (r'patch_embed\.backbone\.stages\.(\d)\.blocks\.(.+)', r'stem.stages.\1.\2'),
    (r'(norm|fc_norm|pre_logits\.fc|head|head_dist)\.(weight|bias)', None),
    (r'mask_token|decoder_.+', None),  # what MAE's pre-training had besides the encoder
)

VIT = Layout(
    'timm, DeiT or MAE ViT',
    'VisionTransformer',
    r'blocks\.0\.attn\.qkv\.weight',
    VIT_RULES,
    split_positions,
)

VIT_NPZ = Layout(
    'google-research ViT',
    'VisionTransformer',
    r'.*Transformer/encoderblock(_0)?/LayerNorm_0/scale',
    VIT_RULES,
    from_npz,
)

MM_VIT = Layout(
    'mmpretrain or mmseg ViT',
    'VisionTransformer',
    r'layers\.0\.ln1\.weight',
    (
        (r'positions\..+', r'\g<0>'),
        (r'patch_embed\.projection\.(.+)', r'stem.conv.\1'),
        (r'layers\.(\d+)\.ln([12])\.(.+)', r'blocks.\1.norm\2.\3'),
        (r'layers\.(\d+)\.attn\.((?:qkv|proj)\..+)', r'blocks.\1.token_mixer.\2'),
        (r'layers\.(\d+)\.attn\.attn\.in_proj_(weight|bias)', r'blocks.\1.token_mixer.qkv.\2'),
        (r'layers\.(\d+)\.attn\.attn\.out_proj\.(.+)', r'blocks.\1.token_mixer.proj.\2'),
        (r'layers\.(\d+)\.ffn\.layers\.0\.0\.(.+)', r'blocks.\1.mlp.fc1.\2'),
        (r'layers\.(\d+)\.ffn\.layers\.1\.(.+)', r'blocks.\1.mlp.fc2.\2'),
        (r'ln1\.(weight|bias)', None),
        (r'head\..+', None),
    ),
    with_patch_bias,
)

LAYOUTS = (
    MMPATCH,
    POOLFORMER,
    HUGGING_FACE_POOLFORMER,
    CONTAINER,
    # The authors' network is one list: stem, blocks from 3 on, pooling and classifier.
    _convmixer('locuslab/convmixer', '', '', r'\d+\.(weight|bias)', first=3),
    _convmixer('timm ConvMixer', r'stem\.', r'blocks\.', r'head\..+'),
    _convmixer('mmpretrain ConvMixer', r'stem\.', r'stages\.', r'head\..+'),
    VIT,
    VIT_NPZ,
    MM_VIT,
)


def layout_of(tensors: Tensors) -> Layout | None:
    """The layout of some tensors, by their keys; None if it is not known."""
    return next((layout for layout in LAYOUTS if layout.recognises(tensors)), None)
