"""Checks of data files: what they hold in memory, and what they name."""

import weakref

import pytest
from mmengine.config import Config
from mmengine.dataset import BaseDataset, ConcatDataset

from mmpatch.engine.data import check_dataset, check_paths, replace_data_root


class Sample(dict):
    """A dict that can be referred to weakly."""


class Images(BaseDataset):
    def __init__(self, folder, count):
        self.alive = []
        self.most = 0
        self.paths = [str(folder / f'{i}.jpg') for i in range(count)]
        super().__init__(pipeline=[{'type': 'LoadImageFromFile'}])

    def load_data_list(self):
        return [{'img_path': path} for path in self.paths]

    def get_data_info(self, idx):
        sample = Sample(super().get_data_info(idx))
        self.alive = [ref for ref in self.alive if ref()] + [weakref.ref(sample)]
        self.most = max(self.most, len(self.alive))
        return sample


@pytest.fixture
def images(tmp_path):
    for i in range(20):
        (tmp_path / f'{i}.jpg').write_bytes(b'x')
    return Images(tmp_path, 20)


def test_one_sample_at_a_time_is_held(images):
    check_dataset(images)
    assert images.most <= 2


def test_missing_and_empty_files_are_named_through_wrappers(images, tmp_path):
    (tmp_path / '3.jpg').unlink()
    (tmp_path / '7.jpg').write_bytes(b'')
    message = r'2 of the files that Images names are missing or empty: .*3\.jpg, .*7\.jpg$'
    with pytest.raises(FileNotFoundError, match=message):
        check_dataset(ConcatDataset([images]))


def test_errors_of_the_pipeline_name_their_sample(images):
    def fail(info):
        raise ValueError('no such box')

    images.pipeline = fail
    check_dataset(images)
    check_dataset(images)  # as before every evaluation
    with pytest.raises(RuntimeError, match=r'failed on .*4\.jpg: ValueError: no such box$'):
        images[4]


def test_data_root_moves_all_paths_below_it(tmp_path):
    dataset = {'type': 'mmdet.CocoDataset', 'data_root': 'data/coco/', 'ann_file': 'train.json'}
    cfg = Config(
        {
            'data_root': 'data/coco/',
            'train_dataloader': {'dataset': {'type': 'RepeatDataset', 'dataset': dataset}},
            'val_evaluator': [{'ann_file': 'data/coco/val.json', 'other': 'data/coconut'}],
        }
    )
    replace_data_root(cfg, str(tmp_path))
    assert cfg.val_evaluator[0].ann_file == f'{tmp_path}/val.json'
    assert cfg.val_evaluator[0].other == 'data/coconut'
    with pytest.raises(FileNotFoundError, match=r'train\.json does not exist .*cocodataset\.org'):
        check_paths(cfg, ('train', 'val'))
    (tmp_path / 'train.json').touch()
    check_paths(cfg, ('train', 'val'))
    with pytest.raises(KeyError, match='no data_root to replace'):
        replace_data_root(Config({}), 'x')
