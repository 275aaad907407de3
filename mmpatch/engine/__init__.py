"""Hooks, checks and learning rates for training and evaluation in mmdet and mmseg."""

from mmpatch.engine.hooks import CheckInvalidLossHook, DataCheckHook, StepSeedHook
from mmpatch.engine.model import check_model
from mmpatch.engine.optim import BFloat16OptimWrapper, LayerDecayOptimWrapperConstructor

__all__ = [
    'BFloat16OptimWrapper',
    'CheckInvalidLossHook',
    'DataCheckHook',
    'LayerDecayOptimWrapperConstructor',
    'StepSeedHook',
    'check_model',
]
