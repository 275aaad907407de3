"""Published weight files, with the accuracies that their publishers report."""

from dataclasses import dataclass
from typing import Any

#: Mean and deviation of the pixels, 0 to 255, that a network was trained with: ImageNet's, and one
#: half, which Google's ViTs expect.
IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
HALF = ((127.5, 127.5, 127.5), (127.5, 127.5, 127.5))

Normalisation = tuple[tuple[float, float, float], tuple[float, float, float]]


@dataclass(frozen=True)
class Published:
    """One published file.

    Attributes:
        url: Where the publisher keeps it.
        family: Class of the backbone that it fits.
        settings: Arguments of that class, without which it would not fit or be resampled.
        layout: How its tensors are named; see :mod:`mmpatch.checkpoint.layouts`.
        licence: SPDX identifier under which it is published; None where we found none stated.
        top1: ImageNet-1k accuracy in percent; None where the file is no classifier of it, or the
            publisher reports none.
        source: Where the accuracy, or else the file, is reported.
        normalisation: Mean and deviation of the RGB pixels, 0 to 255.
        sha256: First digits of the file's SHA-256, where the publisher gives them in its name.
        direct: Whether the URL answers with the file itself.
    """

    url: str
    family: str
    settings: dict[str, Any]
    layout: str
    licence: str | None
    top1: float | None
    source: str
    normalisation: Normalisation = IMAGENET
    sha256: str | None = None
    direct: bool = True


def _poolformer() -> dict[str, Published]:
    sail = 'https://github.com/sail-sg/poolformer/releases/download/v1.0/poolformer_'
    mm = 'https://download.openmmlab.com/mmclassification/v0/poolformer/poolformer-'
    face = 'https://huggingface.co/'
    rows = (
        # arch, paper, mmpretrain's evaluation, hash of its file, timm's evaluation
        ('s12', 77.2, 77.24, 'f8d83051', 77.238),
        ('s24', 80.3, 80.33, 'd7055904', 80.294),
        ('s36', 81.4, 81.43, 'd78ff3e8', 81.428),
        ('m36', 82.1, 82.14, 'c55e0949', 82.104),
        ('m48', 82.5, 82.51, '9378f3eb', 82.462),
    )
    table = {}
    for arch, paper, mm_top1, digest, timm_top1 in rows:
        name, settings = f'poolformer-{arch}', {'arch': arch}
        table[f'{name}_in1k'] = Published(
            f'{sail}{arch}.pth.tar',
            'PoolFormer',
            settings,
            'sail-sg/poolformer',
            'Apache-2.0',
            paper,
            'arXiv 2111.11418, Table 2',
        )
        table[f'{name}_mmpretrain_in1k'] = Published(
            f'{mm}{arch}_3rdparty_32xb128_in1k_20220414-{digest}.pth',
            'PoolFormer',
            settings,
            'sail-sg/poolformer',
            'Apache-2.0',
            mm_top1,
            'mmpretrain, configs/poolformer/metafile.yml',
            sha256=digest,
        )
        table[f'{name}_timm_in1k'] = Published(
            f'{face}timm/poolformer_{arch}.sail_in1k/resolve/main/model.safetensors',
            'PoolFormer',
            settings,
            'mmpatch or timm MetaFormer',
            'Apache-2.0',
            timm_top1,
            'timm, results-imagenet.csv',
        )
        table[f'{name}_hf_in1k'] = Published(
            f'{face}sail/poolformer_{arch}/resolve/main/pytorch_model.bin',
            'PoolFormer',
            settings,
            'Hugging Face PoolFormer',
            'Apache-2.0',
            paper,
            'arXiv 2111.11418, Table 2',
        )
    return table


def _convmixer() -> dict[str, Published]:
    github = 'https://github.com/tmp-iclr/convmixer/releases/download/v1.0/convmixer_'
    mm = 'https://download.openmmlab.com/mmclassification/v0/convmixer/convmixer-'
    rows = (
        # arch, authors' file, top-1, mmpretrain's file with its hash
        ('1536/20', '1536_20_ks9_p7', 81.37, '1536_20', 'ea5786f3'),
        ('768/32', '768_32_ks7_p7_relu', 80.16, '768-32', 'bca1f7b8'),
        ('1024/20', '1024_20_ks9_p14', 76.94, '1024-20', '48f8aeba'),
    )
    table = {}
    for arch, file, top1, mm_name, digest in rows:
        name = arch.replace('/', '-')
        table[f'convmixer-{name}_in1k'] = Published(
            f'{github}{file}.pth.tar',
            'ConvMixer',
            {'arch': arch},
            'locuslab/convmixer',
            'MIT',
            top1,
            'README of locuslab/convmixer',
        )
        table[f'convmixer-{name}_mmpretrain_in1k'] = Published(
            f'{mm}{mm_name}_3rdparty_10xb64_in1k_20220323-{digest}.pth',
            'ConvMixer',
            {'arch': arch},
            'mmpretrain ConvMixer',
            'Apache-2.0',
            top1,
            'mmpretrain, configs/convmixer/metafile.yml',
            sha256=digest,
        )
    return table


def _vit() -> dict[str, Published]:
    meta = 'https://dl.fbaipublicfiles.com/'
    google = 'https://storage.googleapis.com/vit_models/augreg/'
    deit = (
        # arch, file, hash, top-1
        ('tiny', 'tiny_patch16_224', 'a1311bcf', 72.2),
        ('small', 'small_patch16_224', 'cd65a155', 79.9),
        ('base', 'base_patch16_224', 'b5f2ef4d', 81.8),
        ('tiny', 'tiny_distilled_patch16_224', 'b40b3cf7', 74.5),
        ('small', 'small_distilled_patch16_224', '649709d9', 81.2),
        ('base', 'base_distilled_patch16_224', 'df68dfff', 83.4),
        ('base', 'base_patch16_384', '8de9b5d1', 82.9),
        ('base', 'base_distilled_patch16_384', 'd0272ac0', 85.2),
    )
    augreg = (
        # arch, patch, file
        ('tiny', 16, 'Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0'),
        ('small', 16, 'S_16-i21k-300ep-lr_0.001-aug_light1-wd_0.03-do_0.0-sd_0.0'),
        ('small', 32, 'S_32-i21k-300ep-lr_0.001-aug_light1-wd_0.03-do_0.0-sd_0.0'),
        ('base', 8, 'B_8-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0'),
        ('base', 16, 'B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0'),
        ('base', 32, 'B_32-i21k-300ep-lr_0.001-aug_medium1-wd_0.03-do_0.0-sd_0.0'),
        ('large', 16, 'L_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.1-sd_0.1'),
        ('tiny-r-s16-p8', None, 'R_Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0'),
        ('small-r26-s32', None, 'R26_S_32-i21k-300ep-lr_0.001-aug_medium2-wd_0.03-do_0.0-sd_0.0'),
        ('large-r50-s32', None, 'R50_L_32-i21k-300ep-lr_0.001-aug_medium2-wd_0.1-do_0.0-sd_0.0'),
    )
    table = {}
    for arch, file, digest, top1 in deit:
        name = file.replace('_patch16_224', '').replace('_patch16', '').replace('_', '-')
        settings = {'arch': arch, 'distilled': 'distilled' in file}
        settings['pretrain_img_size'] = int(file[-3:])
        table[f'deit-{name}_in1k'] = Published(
            f'{meta}deit/deit_{file}-{digest}.pth',
            'VisionTransformer',
            settings,
            'timm, DeiT or MAE ViT',
            'Apache-2.0',
            top1,
            'README_deit.md of facebookresearch/deit',
            sha256=digest,
        )
    for arch in ('base', 'large', 'huge'):
        table[f'mae-{arch}_in1k'] = Published(
            f'{meta}mae/pretrain/mae_pretrain_vit_{arch}.pth',
            'VisionTransformer',
            {'arch': arch},
            'timm, DeiT or MAE ViT',
            'CC-BY-NC-4.0',
            None,
            'README of facebookresearch/mae',
        )
    for arch, patch, file in augreg:
        table[f'vit-{arch}{f"-p{patch}" if patch else ""}_in21k'] = Published(
            f'{google}{file}.npz',
            'VisionTransformer',
            {'arch': arch, 'patch_size': patch},
            'google-research ViT',
            'Apache-2.0',
            None,
            'arXiv 2106.10270',
            normalisation=HALF,
        )
    table['vit-base-r50-s16_in1k'] = Published(
        'https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-vitjx/'
        'jx_vit_base_resnet50_384-9fd3c705.pth',
        'VisionTransformer',
        {'arch': 'base-r50-s16', 'pretrain_img_size': 384},
        'timm, DeiT or MAE ViT',
        'Apache-2.0',
        None,
        'timm, vision_transformer_hybrid.py',
        normalisation=HALF,
        sha256='9fd3c705',
    )
    return table


#: Name behind ``mmpatch://`` -> file.
PUBLISHED = {
    **_poolformer(),
    'container-light_in1k': Published(
        'https://drive.google.com/file/d/1WMOWoxTX7AQDCbfMYh7naqIHube3K85A',
        'Container',
        {'arch': 'light'},
        'allenai/container',
        None,
        82.3,
        'README of allenai/container',
        direct=False,
    ),
    **_convmixer(),
    **_vit(),
}
