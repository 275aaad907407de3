"""Look into a network: features, affinities, receptive fields, class activations, weights.

    python tools/visualize.py affinity poolformer-s12 photo.jpg
    python tools/visualize.py features CONFIG photo.jpg --checkpoint FILE --out pictures
    python tools/visualize.py cam CONFIG photo.jpg --checkpoint FILE --class dog

The tool writes PNGs. Without a photograph, it generates a picture. Without a checkpoint, weights
are random, and the titles say so. NETWORK is a config of mmdet or mmseg, or a backbone: a name of
mmpatch.list_models(), timm://NAME, or mmpatch://NAME with its published weights.
"""

import argparse
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from mmpatch.engine.build import is_config
from mmpatch.engine.errors import report_errors
from mmpatch.engine.tool import OptionAction

from visualization import affinity, cam, erf, features, picture, weights
from visualization.subject import Subject, load_subject, read_photo

VIEWS = {
    'features': 'principal components of every output as colours, and its channels',
    'affinity': 'what a token mixes with, heads side by side, over the photograph',
    'erf': 'effective receptive field of every output',
    'cam': 'Grad-CAM of a class of a detector or segmentor',
    'weights': 'patch-embedding filters, depthwise kernels, positions, distances of mixing',
}


def make_parser() -> argparse.ArgumentParser:
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=style)
    views = parser.add_subparsers(dest='view', required=True, metavar='VIEW')
    for view, about in VIEWS.items():
        example = f'    python tools/visualize.py {view} poolformer-s12 photo.jpg'
        if view == 'cam':
            example = '    python tools/visualize.py cam CONFIG photo.jpg --class dog'
        one = views.add_parser(
            view, help=about, description=f'{about}\n\n{example}', formatter_class=style
        )
        one.add_argument('network', metavar='NETWORK', help='config, or name of a backbone')
        one.add_argument('photo', nargs='?', metavar='PHOTO', help='file (a generated picture)')
        one.add_argument('--checkpoint', help='mmpatch://NAME, hf-hub:ORG/NAME, URL or path')
        one.add_argument('--out', type=Path, default=Path('pictures'), help='folder (pictures)')
        one.add_argument(
            '--size', type=int, default=224, help='shorter side of the picture in pixels (224)'
        )
        one.add_argument('--seed', type=int, default=0, help='of random weights and pictures (0)')
        one.add_argument(
            '--cfg-options', nargs='+', action=OptionAction, default={}, metavar='KEY=VALUE'
        )
        if view == 'features':
            one.add_argument('--channels', type=int, default=3, help='channels to show (3)')
        if view == 'affinity':
            one.add_argument(
                *('--at',), nargs=2, type=float, default=(0.5, 0.5), metavar=('X', 'Y'),
                help='place of the token, from 0 to 1: right and down (0.5 0.5)',
            )  # fmt: skip
            one.add_argument('--class-token', action='store_true', help='instead of the token --at')
            one.add_argument('--heads', type=int, default=4, help='most heads to show (4)')
            one.add_argument(
                '--blocks',
                nargs='+',
                type=int,
                metavar='N',
                help='blocks to show, counted from 1 (last of each stage)',
            )
            one.add_argument('--rollout', action='store_true', help='add rollout over the blocks')
        if view == 'erf':
            one.add_argument(
                '--noise', type=int, default=0, metavar='N', help='use N noise pictures instead'
            )
        if view == 'cam':
            one.add_argument('--class', dest='label', help='name or number (the best)')
    return parser


def draw(args: argparse.Namespace, subject: Subject) -> Any:
    """Draw a view: names of figures, '' for the only one, and the figures."""
    photo = read_photo(args.photo, args.size, args.seed)
    if args.view == 'features':
        yield '', features.draw(subject, photo, args.channels)
    elif args.view == 'affinity':
        at = None if args.class_token else tuple(args.at)
        shown = args.heads, args.blocks, args.rollout
        yield '', affinity.draw(subject, photo, at, *shown)
    elif args.view == 'erf':
        inputs, what = subject.prepare(photo), 'one picture'
        if args.noise:
            generator = torch.Generator().manual_seed(args.seed)
            inputs = torch.randn(args.noise, *inputs.shape[1:], generator=generator)
            what = f'{args.noise} pictures of noise'
        yield '', erf.draw(subject, inputs, what)
    elif args.view == 'cam':
        yield '', cam.draw(subject, photo, args.label)
    else:
        yield from weights.draw(subject, photo)


@report_errors()
def main() -> None:
    parser = make_parser()
    args = parser.parse_args()
    if args.size < 32 or args.seed < 0:
        parser.error(f'--size {args.size} --seed {args.seed}: at least 32, and 0')
    if args.view == 'affinity' and not all(0 <= place <= 1 for place in args.at):
        parser.error(f'--at {args.at[0]:g} {args.at[1]:g}: both from 0 to 1')
    if args.cfg_options and not is_config(args.network):
        parser.error(f'--cfg-options are settings of a config, not of {args.network}')
    warnings.simplefilter('ignore')  # of the hosts, on every part that they build
    change = cam.let_all_through if args.view == 'cam' else None
    subject = load_subject(args.network, args.checkpoint, args.cfg_options, args.seed, change)
    args.out.mkdir(parents=True, exist_ok=True)
    print(f'{args.view} of {subject.title}', file=sys.stderr, flush=True)
    given = [Path(file).stem for file in (args.photo, args.checkpoint) if file]
    given += [args.label] if getattr(args, 'label', None) else []
    name = '_'.join(re.sub(r'\W+', '-', part).strip('-') for part in (subject.name, *given))
    for part, figure in draw(args, subject):
        picture.save(figure, args.out / f'{args.view}{"-" * bool(part)}{part}_{name}.png')


if __name__ == '__main__':
    main()
