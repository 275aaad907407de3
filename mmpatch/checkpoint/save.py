"""A backbone as a folder: its weights, and what it is built from."""

import json
import os
from pathlib import Path
from typing import Any

from safetensors.torch import save

from mmpatch.compat.safe_load import HUB_FILES
from mmpatch.compat.weight_files import write_whole

#: File beside the weights that says what they fit.
CONFIG_FILE = 'config.json'


def save_pretrained(model: Any, folder: str | os.PathLike[str]) -> None:
    """Write ``model.safetensors`` and ``config.json`` into a folder, which is made if need be.

    Each file appears when it is complete.

    Args:
        model: A backbone of mmpatch. Its type and the arguments that it was made with are the
            config, which a registry builds it from; the folder is a checkpoint of ``init_cfg``.
        folder: Where to write. Its files can be uploaded to a hub as they are.

    Raises:
        TypeError: If the model is no backbone of mmpatch, or an argument has no form in JSON.
    """
    if not hasattr(model, 'settings'):
        raise TypeError(f'save_pretrained takes a backbone of mmpatch, not {type(model).__name__}')
    settings = {key: value for key, value in model.settings.items() if key != 'init_cfg'}
    try:
        text = json.dumps({'type': f'mmpatch.{type(model).__name__}', **settings}, indent=2)
    except TypeError as error:
        raise TypeError(f'{type(model).__name__} has an argument without JSON: {error}') from error
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    write_whole(folder / HUB_FILES[0], save(tensors, {'format': 'pt'}))
    write_whole(folder / CONFIG_FILE, f'{text}\n'.encode())
