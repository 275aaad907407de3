"""What the hosts lack behind the neck."""

from mmpatch.heads.smca import ModulatedDecoder, SpatialPrior, build_smca_detr

__all__ = ['ModulatedDecoder', 'SpatialPrior', 'build_smca_detr']
