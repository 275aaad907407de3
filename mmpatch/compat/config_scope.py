"""Makes ``_base_ = 'mmpatch::...'`` work in configs."""

from mmengine.config.utils import MODULE2PACKAGE


def install() -> str:
    """Add mmpatch to MMEngine's closed table of packages that have configs.

    MMEngine asks pip for the location of a package, which is wrong for editable installs. It asks
    the import system only for names that pip does not know, so the table gets that of a module.
    """
    MODULE2PACKAGE['mmpatch'] = 'mmpatch.registry'
    return "mmpatch: configs can be inherited with _base_ = 'mmpatch::...'"
