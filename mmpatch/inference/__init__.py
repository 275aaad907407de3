"""Predictions of trained models on pictures and videos."""

from mmpatch.inference.predict import Predictor, predict

__all__ = ['Predictor', 'predict']
