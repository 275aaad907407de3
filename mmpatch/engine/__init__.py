"""Hooks, checks and learning rates for training and evaluation in mmdet and mmseg."""

from mmpatch.engine.hooks import CheckInvalidLossHook, DataCheckHook, StepSeedHook
from mmpatch.engine.model import check_model
from mmpatch.engine.optim import BFloat16OptimWrapper, LayerDecayOptimWrapperConstructor
from mmpatch.engine.storage import CheckpointHook

__all__ = [
    'BFloat16OptimWrapper',
    'CheckInvalidLossHook',
    'CheckpointHook',
    'DataCheckHook',
    'LayerDecayOptimWrapperConstructor',
    'StepSeedHook',
    'check_model',
]
