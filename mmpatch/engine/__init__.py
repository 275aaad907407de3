"""Hooks, checks and learning rates for training and evaluation in mmdet and mmseg."""

from mmpatch.engine.hooks import CheckInvalidLossHook, DataCheckHook, StepSeedHook
from mmpatch.engine.model import check_model
from mmpatch.engine.optim import LayerDecayOptimWrapperConstructor

__all__ = [
    'CheckInvalidLossHook',
    'DataCheckHook',
    'LayerDecayOptimWrapperConstructor',
    'StepSeedHook',
    'check_model',
]
