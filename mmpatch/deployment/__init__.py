"""From a trained network to one that is faster to run and equal in its outputs."""

from mmpatch.deployment.export import export
from mmpatch.deployment.exported_backbone import ExportedBackbone
from mmpatch.deployment.files import ExportError
from mmpatch.deployment.fold import deploy

__all__ = ['ExportError', 'ExportedBackbone', 'deploy', 'export']
