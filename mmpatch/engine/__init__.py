"""What mmpatch adds to a host's training and evaluation."""

from mmpatch.engine.hooks import DataCheckHook, StepSeedHook
from mmpatch.engine.model import check_model
from mmpatch.engine.optim import LayerDecayOptimWrapperConstructor

__all__ = [
    'DataCheckHook',
    'LayerDecayOptimWrapperConstructor',
    'StepSeedHook',
    'check_model',
]
