"""Tables and a picture of the measurements of ``benchmark.py`` and ``benchmark_models.py``."""

import math
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

USES = ('inference', 'training')
HEAPS = ('kept', 'glibc')
PRECISIONS = {'f32': 'float32', 'bf16': 'bf16', 'int8': 'int8'}
PACKAGES = ('python', 'torch', 'timm', 'openvino', 'onnxruntime', 'nncf', 'mmdet')
#: Types of OpenVINO's layers with a column of their own. Attention is a subgraph, too.
LAYERS = ('Convolution', 'FullyConnected', 'MVN', 'AvgPool', 'Subgraph', 'Transpose', 'Reorder')
#: A form of ours, with the heap kept, the one that it is compared with, and the heap of that.
COMPARISONS = (
    ('mmpatch', 'timm channels_last', 'kept'),
    ('mmpatch', 'timm', 'glibc'),
    ('mmpatch compiled', 'timm compiled', 'kept'),
    ('mmpatch deployed', 'mmpatch', 'kept'),
    ('mmpatch deployed', 'timm channels_last', 'kept'),
    ('mmpatch exported onnxruntime', 'timm onnxruntime', 'kept'),
    ('mmpatch exported openvino f32', 'timm openvino f32', 'kept'),
    ('mmpatch exported openvino f32', 'mmpatch plain openvino f32', 'kept'),
    ('mmpatch exported openvino f32', 'timm', 'glibc'),
    ('mmpatch deployed bf16', 'timm channels_last bf16', 'kept'),
    ('mmpatch exported openvino bf16', 'timm openvino bf16', 'kept'),
    ('mmpatch exported openvino bf16', 'mmpatch plain openvino bf16', 'kept'),
    ('mmpatch exported openvino bf16', 'timm', 'glibc'),
    ('mmpatch exported openvino int8', 'mmpatch exported openvino bf16', 'kept'),
    ('mmpatch exported openvino free f32', 'timm openvino free f32', 'kept'),
    ('mmpatch exported openvino free bf16', 'timm openvino free bf16', 'kept'),
)
#: Colours of Okabe and Ito, which the colour-blind tell apart; and how a precision is hatched.
COLOURS = {'timm': '#E69F00', 'mmpatch plain': '#56B4E9', 'mmpatch': '#0072B2'}
HATCHES = {'f32': '', 'bf16': '////', 'int8': 'xxxx'}


def get_precision(form: str) -> str:
    """'bf16', 'int8', or 'f32' where a form names none."""
    last = form.split()[-1]
    return last if last in PRECISIONS else 'f32'


def is_peer(form: str) -> bool:
    """Whether a form is not ours; for CONTAINER, which timm lacks, our plain graph in an engine."""
    return form.startswith(('timm', 'mmpatch plain'))


def join_table(heads: list[str], rows: Iterable[list[str]]) -> list[str]:
    """Lines of a Markdown table."""
    lines = [f'| {" | ".join(row)} |' for row in (heads, *rows)]
    return [lines[0], '|---' * len(heads) + '|', *lines[1:], '']


def make_header(result: dict[str, Any]) -> list[str]:
    """When, where and by what a file was measured."""
    machine = [result['date'], result.get('gpu') or result['cpu']]
    machine += [f'with {" and ".join(result["flags"])}'] if result.get('flags') else []
    packages = ', '.join(f'{name} {result[name]}' for name in PACKAGES if result.get(name))
    threads = f'{result["threads"]} threads'
    return [f'Measured {", ".join([*machine, threads])}; {packages}:', f'`{result["command"]}`', '']


def make_tables(result: dict[str, Any]) -> str:
    """Markdown of what ``benchmark.py`` wrote."""
    networks = result['networks']
    lines = make_header(result)
    for use in USES:
        found = {name: uses[use] for name, uses in networks.items() if use in uses}
        for precision, name in PRECISIONS.items():
            rows = [row for n, of in found.items() for row in list_rows(n, of, precision)]
            if rows:
                last = 'MiB kept' if use == 'training' else 'error'
                heads = ['network, input', 'form', 'ms, heap kept (x)', 'ms, heap of glibc (x)']
                lines += [f'{use.capitalize()}, {name}:', '']
                lines += join_table([*heads, 'page faults', last], rows)
        ratios = list(list_ratios(found))
        if ratios:
            lines += [f'Times faster in {use} (in parentheses: the heap):', '']
            lines += join_table(['forms', *found], ratios)
        layers = list(list_layers(found))
        if layers:
            lines += ['Milliseconds of layers in OpenVINO, by its names of their types:', '']
            lines += join_table(['network', 'form', *LAYERS, 'others', 'all'], layers)
        best = list(list_best(found)) if use == 'inference' else []
        if best:
            lines += ['The best float32 form of ours, heap kept, and of all others, any heap:', '']
            lines += join_table(['network', 'ours', 'others', 'times faster'], best)
    return '\n'.join(lines)


def list_rows(name: str, found: dict[str, Any], precision: str) -> Iterator[list[str]]:
    """Cells of the forms of a network; ratios are to its first form, in float32 and any heap."""
    seconds, first = found['seconds'], next(iter(found['seconds']['kept']))
    forms = [*seconds['kept'], *found.get('missing', {})]
    for form in (form for form in forms if get_precision(form) == precision):
        cells = [f'{name}, {"x".join(map(str, found["input"]))}', form]
        for heap in HEAPS:
            value, base = (seconds.get(heap, {}).get(key) for key in (form, first))
            cells.append(f'{value * 1e3:.1f} ({base / value:.2f})' if value and base else '-')
        faults = [found['page_faults'].get(heap, {}).get(form) for heap in HEAPS]
        cells.append(' / '.join('-' if count is None else f'{count:.0f}' for count in faults))
        kept, error = (found.get(key, {}).get(form) for key in ('kept_bytes', 'error'))
        if kept is not None:
            cells.append(f'{kept / 2**20:.0f}')
        else:
            cells.append('-' if error is None else f'{error:.0e}')
        yield cells


def list_ratios(found: dict[str, Any]) -> Iterator[list[str]]:
    """Cells of the comparisons that some network has."""
    for ours, theirs, heap in COMPARISONS:
        cells = []
        for of in found.values():
            value = of['seconds']['kept'].get(ours)
            peer = of['seconds'].get(heap, {}).get(theirs)
            cells.append(f'{peer / value:.2f}' if value and peer else '-')
        if set(cells) - {'-'}:
            yield [f'{ours} (kept) over {theirs} ({heap})', *cells]


def list_layers(found: dict[str, Any]) -> Iterator[list[str]]:
    """Cells of what OpenVINO's layers took in each form that it ran."""
    for name, of in found.items():
        for form, seconds in of.get('layers', {}).items():
            known = [seconds.get(key, 0) for key in LAYERS]
            total = math.fsum(seconds.values())  # rounded alike by every Python
            rest = total - math.fsum(known)
            cells = [f'{1e3 * value:.1f}' for value in (*known, rest, total)]
            yield [name, form, *cells]


def list_best(found: dict[str, Any]) -> Iterator[list[str]]:
    """Cells of the fastest float32 forms of each network that has others than ours."""
    for name, of in found.items():
        timed = [
            (value, form, heap)
            for heap, values in of['seconds'].items()
            for form, value in values.items()
            if get_precision(form) == 'f32' and (is_peer(form) or heap == 'kept')
        ]
        if {is_peer(form) for _, form, _ in timed} == {True, False}:
            ours, theirs = (
                min(row for row in timed if is_peer(row[1]) is peer) for peer in (False, True)
            )
            cells = [f'{form} ({heap}), {s * 1e3:.1f} ms' for s, form, heap in (ours, theirs)]
            yield [name, *cells, f'{theirs[0] / ours[0]:.2f}']


def make_model_table(result: dict[str, Any]) -> str:
    """Markdown of what ``benchmark_models.py`` wrote."""
    lines = make_header(result)
    for use, found in result['retinanet'].items():
        seconds, peaks, errors = found['seconds'], found['peak_mib'], found['error']
        bases = [name for name in ('timm PoolFormer-S12', 'mmpatch') if name in seconds]
        rows = [
            [name, f'{value:.3f}', *(f'{seconds[base] / value:.2f}' for base in bases)]
            + [f'{peaks[name]:.0f}', *([f'{errors[name]:.0e}'] if name in errors else ['-'])]
            for name, value in seconds.items()
        ]
        lines += [f'RetinaNet, {use}, {"x".join(map(str, result["input"]))}:', '']
        times = [f'times faster than {base}' for base in bases]
        lines += join_table(['detector', 'seconds', *times, 'peak, MiB', 'error'], rows)
    return '\n'.join(lines)


def write_tables(page: Path, script: str, text: str) -> None:
    """Put tables between the marks of a script in a page.

    Raises:
        SystemExit: If the page has no such marks.
    """
    marks = rf'(<!-- {re.escape(script)} --table \S+ -->\n).*?(<!-- end -->)'
    old = page.read_text() if page.is_file() else ''
    if not re.search(marks, old, re.DOTALL):
        sys.exit(f'error: {page} has no line <!-- {script} --table FILE --> before <!-- end -->')
    new = re.sub(marks, lambda match: f'{match[1]}\n{text}\n{match[2]}', old, flags=re.DOTALL)
    page.write_text(new)


def draw(result: dict[str, Any], file: Path) -> None:
    """Bars of the times of inference, over those of timm's plain module, a column per network."""
    import matplotlib as mpl

    mpl.use('Agg')
    from matplotlib import pyplot as plt
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    found = {n: uses['inference'] for n, uses in result['networks'].items() if 'inference' in uses}
    every = dict.fromkeys(form for of in found.values() for form in of['seconds']['kept'])
    forms = sorted(every, key=lambda form: list(PRECISIONS).index(get_precision(form)))
    size = 3 + 2.1 * max(len(found), 3), 1.9 + 0.3 * len(forms)
    figure, axes = plt.subplots(
        1, len(found), figsize=size, sharey=True, squeeze=False, layout='constrained'
    )
    for axis, (name, of) in zip(axes[0], found.items(), strict=True):
        kept, glibc = (of['seconds'].get(heap, {}) for heap in HEAPS)
        first = next(iter(kept))
        ratios = {form: kept[form] / kept[first] for form in forms if form in kept}
        others = {form: glibc[form] / kept[first] for form in forms if form in glibc}
        widest = max([*ratios.values(), *others.values()])
        for row, form in enumerate(forms):
            if form not in ratios:
                axis.text(0.02 * widest, row, '-', va='center', color='grey', fontsize=8)
                continue
            library = next(key for key in COLOURS if form.startswith(key))
            colour, hatch = COLOURS[library], HATCHES[get_precision(form)]
            axis.barh(row, ratios[form], 0.72, color=colour, hatch=hatch, edgecolor='white', lw=0)
            end = max(ratios[form], others.get(form, 0))
            axis.text(end + 0.03 * widest, row, f'{ratios[form]:.2f}', va='center', fontsize=8)
            if form in others:
                axis.plot([others[form]] * 2, [row - 0.36, row + 0.36], color='black', lw=1.5)
        axis.axvline(1, color='grey', lw=0.8, ls=':', zorder=0)
        axis.set_xlim(0, 1.22 * widest)
        axis.set_title(f'{name}\n{"x".join(map(str, of["input"]))}', fontsize=10)
        axis.set_xlabel(f'time / {first} ({kept[first] * 1e3:.0f} ms)', fontsize=8)
        axis.tick_params(labelsize=8)
        axis.spines[['top', 'right']].set_visible(False)
        for row in range(1, len(forms)):
            if get_precision(forms[row]) != get_precision(forms[row - 1]):
                axis.axhline(row - 0.5, color='grey', lw=0.8)
    axes[0][0].set_yticks(range(len(forms)), forms)
    axes[0][0].set_ylim(len(forms) - 0.4, -0.6)
    shown = {next(key for key in COLOURS if form.startswith(key)) for form in forms}
    handles: list[Any] = [Patch(color=c, label=key) for key, c in COLOURS.items() if key in shown]
    handles += [
        Patch(facecolor='grey', edgecolor='white', lw=0, hatch=HATCHES[key], label=PRECISIONS[key])
        for key in dict.fromkeys(map(get_precision, forms))
    ]
    handles.append(Line2D([], [], color='black', lw=1.5, label='heap of glibc (bars: heap kept)'))
    figure.legend(handles=handles, loc='outside lower center', ncols=len(handles), fontsize=9)
    machine = f'{result["cpu"]}, {result["date"]}, {result["threads"]} threads'
    figure.suptitle(f'Time of inference, shorter is faster: {machine}')
    figure.savefig(file, dpi=110)
    plt.close(figure)
