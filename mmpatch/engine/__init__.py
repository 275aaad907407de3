"""What the tools add to a host's training and evaluation."""

from mmpatch.engine.hooks import DataCheckHook, StepSeedHook

__all__ = ['DataCheckHook', 'StepSeedHook']
