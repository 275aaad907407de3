"""Memory and handles of long runs: a training of Mask R-CNN, and predictions of many pictures."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mmpatch
from reliability.child import Sample, make_data, read_log, run_tool
from reliability.report import Row

BASE = 'poolformer/mask-rcnn_poolformer-s12_fpn_1x_coco.py'
#: Mask R-CNN, about as small as the detector of the demo. The data loader restarts every epoch.
CONFIG = """
_base_ = {base!r}
data_root = {data!r}
scale = (144, 120)
levels = dict(in_channels=64, feat_channels=64)
model = dict(
    backbone=dict(depths=(1, 1, 2, 1), dims=(32, 64, 128, 192), layer_scale=None, init_cfg=None),
    neck=dict(in_channels=[32, 64, 128, 192], out_channels=64),
    rpn_head=dict(anchor_generator=dict(scales=[4]), **levels),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64),
        bbox_head=dict(in_channels=64, fc_out_channels=128),
        mask_roi_extractor=dict(out_channels=64),
        mask_head=dict(num_convs=1, in_channels=64, conv_out_channels=32),
    ),
    train_cfg=dict(rpn_proposal=dict(max_per_img=100), rcnn=dict(sampler=dict(num=64))),
    test_cfg=dict(rpn=dict(max_per_img=100), rcnn=dict(max_per_img=20)),
)
train_pipeline = _base_.train_pipeline
train_pipeline[2]['scale'] = scale
test_pipeline = _base_.test_pipeline
test_pipeline[1]['scale'] = scale
train_data = dict(data_root=data_root, pipeline=train_pipeline)
train_data['filter_cfg'] = dict(filter_empty_gt=False, min_size=8)  # all 100 pictures are used
train_dataloader = dict(dataset=train_data)
val_dataloader = dict(dataset=dict(data_root=data_root, pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val2017.json')
test_evaluator = val_evaluator
optim_wrapper = dict(optimizer=dict(lr=1e-3), clip_grad=dict(max_norm=10))
train_cfg = dict(max_epochs={epochs}, val_interval={epochs})
default_hooks = dict(
    logger=dict(interval=1), checkpoint=dict(interval=1, max_keep_ckpts=1)
)
"""
GROWTH = 1.02
EPOCH = 50
#: Handles that may be open for a moment: two workers start before the last two have ended.
PASSING = 16
#: Variables with which glibc returns every freed block of 128 KiB or more to the system.
RETURN = {
    'MMPATCH_KEEP_HEAP': '0',
    'MALLOC_MMAP_THRESHOLD_': '131072',
    'MALLOC_TRIM_THRESHOLD_': '131072',
}


def check(folder: Path, is_long: bool) -> Iterator[Row]:
    """Train for 2,000 iterations, or 150, then predict 10,000 pictures, or 300.

    Two trainings run side by side. One is as users have it; its resident memory has what the heap
    keeps of the largest batch so far. The other returns freed memory, so that the least of each
    epoch is what it has in use.

    Args:
        folder: Empty folder to work in.
        is_long: Whether to take the longer form.
    """
    iterations, pictures, warm = (2000, 10000, 200) if is_long else (150, 300, 100)
    data = make_data(folder / 'toy', 100, 20)
    base = mmpatch.config_path(BASE)
    config = folder / 'mask-rcnn.py'
    config.write_text(CONFIG.format(base=base, data=f'{data}/coco/', epochs=iterations // EPOCH))
    what = f'{iterations} iterations of a toy Mask R-CNN, 2 data workers that restart every {EPOCH}'
    with ThreadPoolExecutor() as pool:
        kept = pool.submit(train, config, folder / 'kept', iterations)
        returned = pool.submit(train, config, folder / 'returned', iterations, **RETURN)
    used = find_least(returned.result())
    returning = f'{what}; glibc returns freed memory; least of each epoch'
    yield make_memory_row(used, 'memory in use by a training', returning, warm)
    yield make_memory_row(kept.result(), 'resident memory of a training', what, warm)
    yield make_handle_row(kept.result(), 'a training', what, warm)

    drawn = sorted((data / 'coco/train2017').iterdir())
    many, out = folder / 'many', folder / 'out'
    many.mkdir()
    for i in range(pictures):
        (many / f'{i:05}.jpg').symlink_to(drawn[i % len(drawn)])
    (checkpoint,) = (folder / 'kept').glob('epoch_*.pth')

    def count_pictures() -> int:
        folder = out / 'pictures'
        return len(os.listdir(folder)) if folder.is_dir() else 0

    words = [checkpoint, many, '--out', out]
    log = folder / 'predict.log'
    samples = run_tool('predict', *words, log=log, count=count_pictures, total=pictures)
    what = f'{pictures} pictures (links to {len(drawn)} generated ones) through tools/predict.py'
    yield make_memory_row(samples, 'resident memory of predictions', what, warm)
    yield make_handle_row(samples, 'predictions', what, warm)


def train(config: Path, work_dir: Path, iterations: int, **variables: str) -> list[Sample]:
    """Train and sample memory and handles, with these variables of the environment."""

    def count_iterations() -> int:
        return max((line.get('step', 0) for line in read_log(work_dir)), default=0)

    return run_tool(
        *('train', config, '--work-dir', work_dir),
        log=work_dir.with_suffix('.log'),
        count=count_iterations,
        total=iterations,
        **variables,
    )


def find_least(samples: list[Sample]) -> list[Sample]:
    """The sample of least memory of each epoch."""
    epochs: dict[int, Sample] = {}
    for sample in samples:
        epoch = (sample.step - 1) // EPOCH
        epochs[epoch] = min(sample, epochs.get(epoch, sample), key=lambda s: s.megabytes)
    return list(epochs.values())


def split(samples: list[Sample], warm: int) -> tuple[list[Sample], list[Sample]]:
    """Samples of the first ``warm`` steps, and those after them.

    Raises:
        RuntimeError: If there are none of either kind.
    """
    before = [sample for sample in samples if sample.step <= warm]
    after = samples[len(before) :]
    if not before or not after:
        raise RuntimeError(f'{len(samples)} samples do not show growth after step {warm}')
    return before, after


def make_memory_row(samples: list[Sample], memory: str, what: str, warm: int) -> Row:
    """Row on the memory after the first steps, against the last of those."""
    before, after = split(samples, warm)
    bound, largest = before[-1].megabytes * GROWTH, max(s.megabytes for s in after)
    return Row(
        f'{memory} stays within 2 % of that after {warm} steps',
        what,
        len(after),
        sum(sample.megabytes <= bound for sample in after),
        f'{before[-1].megabytes:.0f} MB, then {largest:.0f} MB at most, '
        f'{after[-1].megabytes:.0f} MB at the end',
    )


def make_handle_row(samples: list[Sample], run: str, what: str, warm: int) -> Row:
    """Row on the handles after the first steps, against the most that were open in those."""
    before, after = ([sample.handles for sample in part] for part in split(samples, warm))
    return Row(
        f'no handles (files, pipes) are leaked by {run}',
        what,
        len(after),
        sum(number <= max(before) + PASSING for number in after),
        f'{max(before)} at most, then {max(after)} at most, {after[-1]} at the end',
    )
