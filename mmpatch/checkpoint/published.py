"""Published weight files, with the accuracies that their publishers report."""

from dataclasses import dataclass

POOLFORMER = 'https://github.com/sail-sg/poolformer/releases/download/v1.0'
CONVMIXER = 'https://github.com/tmp-iclr/convmixer/releases/download/v1.0'


@dataclass(frozen=True)
class Published:
    """One published file.

    Attributes:
        url: Where the publisher keeps it.
        licence: SPDX identifier of the repository that publishes it.
        top1: ImageNet-1k accuracy in percent.
        source: Where ``top1`` is reported.
    """

    url: str
    licence: str
    top1: float
    source: str


#: Name behind ``mmpatch://`` -> file.
PUBLISHED = {
    f'poolformer-{size}_in1k': Published(
        f'{POOLFORMER}/poolformer_{size}.pth.tar', 'Apache-2.0', top1, 'arXiv 2111.11418, Table 2'
    )
    for size, top1 in {'s12': 77.2, 's24': 80.3, 's36': 81.4, 'm36': 82.1, 'm48': 82.5}.items()
} | {
    f'convmixer-{name}_in1k': Published(
        f'{CONVMIXER}/convmixer_{file}.pth.tar', 'MIT', top1, 'README of locuslab/convmixer'
    )
    for name, file, top1 in (
        ('1536-20', '1536_20_ks9_p7', 81.37),
        ('768-32', '768_32_ks7_p7_relu', 80.16),
        ('1024-20', '1024_20_ks9_p14', 76.94),
    )
}
