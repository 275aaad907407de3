"""Makes the OpenMMLab stack run on today's Python and torch."""

from mmengine.config.utils import MODULE2PACKAGE

from mmpatch.compat import ops, safe_load

__all__ = ['install']


def install() -> tuple[str, ...]:
    """Install what is needed; ``import mmpatch`` calls this, and calling it again changes nothing.

    Returns:
        A line for the log on each thing that is done. The stand-in for mmcv's ops, which may not be
        needed, says so itself when it is.
    """
    ops.install()
    # MMEngine asks pip for the location of a package, which is wrong for editable installs. It asks
    # the import system only for names that pip does not know, such as that of a module.
    MODULE2PACKAGE['mmpatch'] = 'mmpatch.registry'
    return safe_load.install(), "mmpatch: configs can be inherited with _base_ = 'mmpatch::...'"
