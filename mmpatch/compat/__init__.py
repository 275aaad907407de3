"""Makes the OpenMMLab stack run on today's Python and torch."""

from mmpatch.compat import names, ops, safe_load

__all__ = ['install']


def install() -> tuple[str, ...]:
    """Install what is needed; ``import mmpatch`` calls this, and calling it again changes nothing.

    Returns:
        A line for the log on each thing that is done. The stand-in for mmcv's ops, which may not be
        needed, says so itself when it is.
    """
    ops.install()
    return safe_load.install(), names.install()
