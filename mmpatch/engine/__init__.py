"""What mmpatch adds to a host's training and evaluation."""

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
