"""Makes the OpenMMLab stack run on today's Python and torch."""

from mmpatch.compat import config_scope, ops, safe_load

__all__ = ['install']


def install() -> None:
    """Install what is needed, once; ``import mmpatch`` calls this."""
    ops.install()
    safe_load.install()
    config_scope.install()
