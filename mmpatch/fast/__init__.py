"""Exact fast forms of the blocks: in training and evaluation (``run``), and rewritten (``deploy``).

The plain forms in :mod:`mmpatch.blocks` say what is computed; nothing here computes anything else.
``functions``, ``convmixer`` and ``depthwise`` have parts of blocks as autograd functions, made of
``products`` and ``parts``; ``forms`` says which block they serve and holds the switch; ``deployed``
has the branches of inference copies and ``rewrite`` the way to them.
"""
