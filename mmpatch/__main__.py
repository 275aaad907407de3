"""``python -m mmpatch`` is the command ``mmpatch``, under torchrun for example."""

from mmpatch.command import main

if __name__ == '__main__':
    main()
