"""Makes the OpenMMLab stack run on today's Python and torch."""

import warnings

warnings.filterwarnings('ignore', 'pkg_resources is deprecated')  # MMEngine's; see setup.py

from mmpatch.compat import names, ops, safe_load  # noqa: E402

__all__ = ['install']


def install() -> tuple[str, ...]:
    """Install what is needed; ``import mmpatch`` calls this, and calling it again changes nothing.

    Returns:
        A line for the log on each thing that is done. The stand-in for mmcv's ops, which may not be
        needed, says so itself when it is.
    """
    ops.install()
    return safe_load.install(), names.install()
