"""How published files name their tensors: one table a layout, in which every key must be found.

Targets are names of this package, or, for isotropic networks, ``blocks.N.`` with N counted through
all stages, which :func:`mmpatch.checkpoint.load_pretrained` places into the model's stages.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

Target = str | Callable[[re.Match[str]], str] | None


@dataclass(frozen=True)
class Layout:
    """Renaming of one published layout to the names of this package.

    Attributes:
        name: Shown in the loading report.
        marker: A key with which only files of this layout come.
        rules: Pattern of a whole key -> its new name, as an ``re`` template or a function of the
            match, or None to drop it. The first rule that matches counts.
    """

    name: str
    marker: str
    rules: tuple[tuple[str, Target], ...]

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
    'stem.conv.weight',
    ((r'(stem|stages|out_norms)\..+', r'\g<0>'), (r'head\..+', None)),
)

# network.0, 2, 4, 6 are stages, network.1, 3, 5 the downsampling before the next stage.
POOLFORMER = Layout(
    'sail-sg/poolformer',
    'patch_embed.proj.weight',
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
)

CONTAINER = Layout(
    'allenai/container',
    'patch_embed1.proj.weight',
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

# One list: convolution, activation, norm of the stem, then the blocks, then pooling and classifier.
CONVMIXER = Layout(
    'locuslab/convmixer',
    '3.0.fn.0.weight',
    (
        (r'0\.(weight|bias)', r'stem.conv.\1'),
        (r'2\.(.+)', r'stem.norm.\1'),
        (r'(\d+)\.0\.fn\.0\.(.+)', _stage(r'blocks.{}.token_mixer.conv.\2', 1, -3)),
        (r'(\d+)\.0\.fn\.2\.(.+)', _stage(r'blocks.{}.norm1.\2', 1, -3)),
        (r'(\d+)\.1\.(.+)', _stage(r'blocks.{}.mlp.\2', 1, -3)),
        (r'(\d+)\.3\.(.+)', _stage(r'blocks.{}.norm2.\2', 1, -3)),
        (r'\d+\.(weight|bias)', None),
    ),
)

HUGGING_FACE_POOLFORMER = Layout(
    'Hugging Face PoolFormer',
    'poolformer.encoder.patch_embeddings.0.projection.weight',
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


def _convmixer(name: str, blocks: str) -> Layout:
    """ConvMixer where stem and blocks have names; ``blocks`` is that of the blocks."""
    return Layout(
        name,
        f'{blocks}.0.0.fn.0.weight',
        (
            (r'stem\.0\.(.+)', r'stem.conv.\1'),
            (r'stem\.2\.(.+)', r'stem.norm.\1'),
            (rf'{blocks}\.(\d+)\.0\.fn\.0\.(.+)', r'blocks.\1.token_mixer.conv.\2'),
            (rf'{blocks}\.(\d+)\.0\.fn\.2\.(.+)', r'blocks.\1.norm1.\2'),
            (rf'{blocks}\.(\d+)\.1\.(.+)', r'blocks.\1.mlp.\2'),
            (rf'{blocks}\.(\d+)\.3\.(.+)', r'blocks.\1.norm2.\2'),
            (r'head\..+', None),
        ),
    )


LAYOUTS = (
    MMPATCH,
    POOLFORMER,
    HUGGING_FACE_POOLFORMER,
    CONTAINER,
    CONVMIXER,
    _convmixer('timm ConvMixer', 'blocks'),
    _convmixer('mmpretrain ConvMixer', 'stages'),
)
