"""Lets configs say ``_base_ = 'mmpatch::...'``."""

from mmengine.config.utils import MODULE2PACKAGE


def install() -> str:
    """Add mmpatch to MMEngine's closed table of packages that have configs.

    MMEngine asks pip where a package lies, which is wrong for editable installs, and falls back to
    the import system for names that pip does not know: so the table gets the name of a module.
    """
    MODULE2PACKAGE['mmpatch'] = 'mmpatch.registry'
    return "mmpatch: configs can be inherited with _base_ = 'mmpatch::...'"
