"""What ``benchmark.py`` runs: networks of mmpatch and of timm with equal weights, in all forms.

A form is a way to run a network: 'timm' is timm's module as it is made, 'channels_last' a copy in
that memory format, 'compiled' is ``torch.compile``, and 'bf16' after a form of torch is autocast.
'onnxruntime' and 'openvino' run a graph in a file, for inputs of this size or, if 'free', of any
size. mmpatch's networks are plain, compiled, 'deployed' (folded) or 'exported' (folded, in a file).
CONTAINER, which timm lacks, has its 'plain' graph in a file.
"""

import copy
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from report import USES, get_precision
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

import mmpatch
from mmpatch.backbones import Container, ConvMixer, MetaFormer, PoolFormer, VisionTransformer
from mmpatch.deployment.export import DIMS
from mmpatch.deployment.files import get_core

Forms = dict[str, Callable[[], Any]]
#: Relative error of float32 forms that is taken for rounding.
TOLERANCE = 1e-3
#: Forms of inference in the order of the tables. The last word is the precision, if not float32.
FORMS = (
    *('timm', 'timm channels_last', 'timm compiled', 'timm onnxruntime', 'timm openvino f32'),
    *('mmpatch', 'mmpatch compiled', 'mmpatch deployed', 'mmpatch plain openvino f32'),
    *('mmpatch exported onnxruntime', 'mmpatch exported openvino f32'),
    *('timm channels_last bf16', 'timm openvino bf16', 'mmpatch deployed bf16'),
    *('mmpatch plain openvino bf16', 'mmpatch exported openvino bf16'),
    'mmpatch exported openvino int8',
    *('timm openvino free f32', 'mmpatch exported openvino free f32'),
    *('timm openvino free bf16', 'mmpatch exported openvino free bf16'),
)
EAGER = ('timm', 'timm channels_last', 'mmpatch', 'mmpatch deployed')
SUFFIXES = {'onnxruntime': '.onnx', 'openvino': '.xml'}


class Case(NamedTuple):
    """A network of ours, timm's name of it, an input, and what of it is measured.

    Large networks leave out forms that hold one of the words ``without``, and, with the heap as
    glibc has it, all but ``glibc``, so that a run stays short and two processes fit into memory.
    """

    make: Callable[..., MetaFormer]
    peer: str | None
    size: tuple[int, ...]
    peer_args: dict[str, Any] = {}  # noqa: RUF012, never changed
    uses: tuple[str, ...] = ('inference',)
    glibc: tuple[str, ...] = FORMS
    without: tuple[str, ...] = ()


make_poolformer = partial(PoolFormer, out_norm=False)
make_convmixer = partial(ConvMixer, '768/32', out_norm=False)
make_container = partial(Container, 'light', out_norm=False)
# Made for the sizes that they run at, so that no positions are resampled.
make_vit = partial(VisionTransformer, 'base', pretrain_img_size=384)
make_windowed = partial(
    VisionTransformer,
    'base',
    with_cls_token=False,
    window_size=14,
    rel_pos=True,
    pretrain_img_size=1024,
    norm_cfg={'type': 'LN2d', 'eps': 1e-5},
    out_norm={'type': 'LN2d', 'eps': 1e-6},  # of timm's without SAM's neck
)
SQUARE = (2, 3, 512, 512)
SLOW = ('compiled', 'int8')
CASES = {
    'poolformer-s12': Case(partial(make_poolformer, 's12'), 'poolformer_s12', SQUARE, uses=USES),
    'poolformer-m36': Case(
        partial(make_poolformer, 'm36'), 'poolformer_m36', SQUARE, glibc=EAGER, without=SLOW
    ),
    'convmixer-768-32': Case(
        make_convmixer, 'convmixer_768_32', (2, 3, 224, 224), without=('int8', 'free')
    ),
    'container-light': Case(make_container, None, SQUARE, uses=USES, without=(*SLOW, 'free')),
    'vit-base': Case(
        make_vit,
        'vit_base_patch16_224',
        (2, 3, 384, 384),
        {'img_size': 384},
        glibc=EAGER,
        without=(*SLOW, 'free'),
    ),
    'vit-base-windowed': Case(
        make_windowed,
        'samvit_base_patch16',
        (1, 3, 1024, 1024),
        {'neck_chans': 0},
        glibc=('timm',),
        without=(
            *('channels_last', 'onnxruntime', 'mmpatch compiled', 'deployed bf16'),
            *('int8', 'free'),
        ),
    ),
}


def get_file(form: str) -> str | None:
    """Name of the file that a form runs; None for torch's forms."""
    for engine, suffix in SUFFIXES.items():
        if engine in form:  # of timm there is one graph, whose precision the engine chooses
            kind = [] if form.startswith('timm') else [form.split()[1], get_precision(form)]
            kind += ['free'] if 'free' in form else []
            return '-'.join([form.split()[0], *kind]) + suffix
    return None


def list_forms(case: Case, device: str, with_compiler: bool) -> list[str]:
    """Forms of inference that a machine can run."""
    absent = {*case.without, 'mmpatch plain' if case.peer else 'timm'}
    absent |= {e for e in SUFFIXES if device != 'cpu' or find_spec(e) is None}
    absent |= set() if with_compiler else {'compiled'}
    absent |= set() if device == 'cuda' or read_flags() else {'bf16'}
    absent |= set() if find_spec('nncf') else {'int8'}
    return [form for form in FORMS if not any(word in form for word in absent)]


def read_flags() -> list[str]:
    """Those of the processor's instructions that make bfloat16 fast."""
    info = Path('/proc/cpuinfo')
    words = set(info.read_text().split()) if info.exists() else set()
    return sorted({'amx_bf16', 'avx512_bf16'} & words)


class Features(nn.Module):
    """What of timm's network is compared: all but its head."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network: Any = network

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> map or tokens."""
        return self.network.forward_features(x)


class Networks:
    """Ours, ``kwargs`` among its arguments, and timm's with the same weights, and an input."""

    def __init__(
        self, case: Case, device: str = 'cpu', training: bool = False, **kwargs: Any
    ) -> None:
        torch.manual_seed(0)
        self.device = device
        self.model = case.make(out_indices=(3,), **kwargs)
        self.peer: Any = None
        if case.peer is not None:
            self.peer = Features(timm.create_model(case.peer, **case.peer_args))
        for parameter in (self.peer or self.model).parameters():
            if parameter.abs().max() < 1e-4:  # scales and positions that would hide an error
                nn.init.normal_(parameter, std=0.1)
        if self.peer is not None:
            copy_weights(self.peer.network, self.model)
            self.peer.to(device).train(training)
        self.model.to(device).train(training)
        self.x = torch.randn(case.size).to(device)
        self.x_last = self.x.contiguous(memory_format=torch.channels_last)

    @cached_property
    def last(self) -> Any:
        """Timm's network in channels_last."""
        return copy.deepcopy(self.peer).to(memory_format=torch.channels_last)

    @cached_property
    def deployed(self) -> Any:
        """Ours, folded."""
        return mmpatch.deploy(self.model)

    def make_form(self, form: str, folder: Path) -> Callable[[], Any]:
        """One form of inference as a call without arguments; files are in ``folder``."""
        name = get_file(form)
        if name is not None:
            call, x = load_file(folder / name, form), self.x
        elif form.startswith('timm'):
            call, x = (self.peer, self.x) if form == 'timm' else (self.last, self.x_last)
        else:
            call, x = self.deployed if 'deployed' in form else self.model, self.x
        if 'compiled' in form:
            call = torch.compile(call)
        if name is None and get_precision(form) == 'bf16':
            call = torch.autocast(self.device, torch.bfloat16)(call)
        # Compiled code is not made for inference tensors: no_grad serves all.
        return torch.no_grad()(lambda: call(x))

    def write_file(self, form: str, file: Path) -> None:
        """Write the graph that a form runs, for the size of the input alone unless it is free."""
        dynamic = ('batch', 'height', 'width') if 'free' in form else ()
        if form.startswith('timm'):
            convert_peer(self.peer, self.x, file, dynamic)
            return
        precision = get_precision(form)
        mmpatch.export(
            self.model,
            str(file),
            input_size=tuple(self.x.shape),
            dynamic=dynamic,
            fold='plain' not in form,
            precision=precision,
            calibration=[self.x] if precision == 'int8' else None,
        )


def copy_weights(peer: Any, model: MetaFormer) -> None:
    """Give ours the weights of timm's network, and its last norm, which files count to the head."""
    state = peer.state_dict()
    if 'pos_embed' in state:
        state['pos_embed'] = state['pos_embed'].flatten(1, -2)  # SAM's are a map
    missing = model.load_state_dict(state, strict=False).missing_keys
    for norm in model.out_norms.values():
        norm.load_state_dict((peer.neck if hasattr(peer, 'neck') else peer.norm).state_dict())
    if lost := [key for key in missing if not key.startswith('out_norms.')]:
        raise ValueError(f"timm's {type(peer).__name__} has no {lost}")


def convert_peer(peer: Features, x: Tensor, file: Path, dynamic: Sequence[str] = ()) -> None:
    """Write timm's graph as a user would, without rounding its weights."""
    free = {DIMS[name]: torch.export.Dim.DYNAMIC for name in dynamic}
    if file.suffix == '.onnx':
        torch.onnx.export(peer, (x,), file, dynamo=True)
        return
    import openvino
    from openvino.frontend import OpConversionFailure

    try:
        program = torch.export.export(peer, (x,), dynamic_shapes=(free or None,))
        graph = openvino.convert_model(program)
    except OpConversionFailure:  # SAM's positions have no rule there, so it is traced
        graph = openvino.convert_model(peer, example_input=x)
    graph.reshape([-1 if i in free else n for i, n in enumerate(x.shape)])
    openvino.save_model(graph, file, compress_to_fp16=False)


def load_file(file: Path, form: str) -> Callable[[Tensor], Any]:
    """A session with as many threads as torch has; ours runs as a backbone does."""
    if form.startswith('mmpatch'):
        from mmpatch.deployment import ExportedBackbone

        return ExportedBackbone(file=str(file)).eval()
    if file.suffix == '.onnx':
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(file, options, providers=['CPUExecutionProvider'])
        (node,) = session.get_inputs()
        return lambda x: session.run(None, {node.name: x.numpy()})
    request = compile_openvino(file, form)
    return lambda x: request.infer([x.numpy()], share_inputs=True, share_outputs=True)[0]


def compile_openvino(file: Path, form: str, **settings: Any) -> Any:
    """A request of OpenVINO in one stream, in the precision of a form."""
    settings |= {'INFERENCE_NUM_THREADS': torch.get_num_threads(), 'NUM_STREAMS': 1}
    settings['INFERENCE_PRECISION_HINT'] = 'f32' if get_precision(form) == 'f32' else 'bf16'
    return get_core().compile_model(file, 'CPU', settings).create_infer_request()


def profile_layers(name: str, folder: Path, form: str, calls: int = 5) -> dict[str, float]:
    """Seconds that OpenVINO's layers of each type take: medians of some calls, after two others."""
    request = compile_openvino(folder / get_file(form), form, PERF_COUNT=True)
    x = torch.randn(CASES[name].size).numpy()
    turns: list[Counter[str]] = []
    for _ in range(calls + 2):
        request.infer([x])
        turns.append(Counter())
        for layer in request.get_profiling_info():
            turns[-1][layer.node_type] += layer.real_time.total_seconds()
    types = (key for key, seconds in turns[-1].most_common() if seconds)
    return {key: statistics.median(turn[key] for turn in turns[2:]) for key in types}


def write_files(name: str, folder: Path, forms: list[str], threads: int) -> dict[str, str]:
    """Write the graphs of forms, and the reference: the features of timm's module in float32.

    Returns:
        Forms whose graph could not be written, and why.
    """
    torch.set_num_threads(threads)
    networks = Networks(CASES[name])
    with torch.no_grad():
        torch.save(get_map((networks.peer or networks.model)(networks.x)), folder / 'reference.pt')
    missing = {}
    for form in forms:
        file = get_file(form)
        if file is None or (folder / file).exists():
            continue
        try:
            networks.write_file(form, folder / file)
        except Exception as error:  # of any kind: each exporter has its own
            reason = str(error).strip().splitlines() or ['']
            missing[form] = f'{type(error).__name__}: {reason[0]}'
    return missing


def get_map(out: Any) -> Tensor:
    """The last map of what a form returns, (B, C, H, W), in float32."""
    out = torch.as_tensor(out[-1] if isinstance(out, (tuple, list)) else out).float()
    if out.ndim == 4:
        return out
    side = int((out.shape[1] - 1) ** 0.5)  # behind a class token
    return out[:, 1:].transpose(1, 2).unflatten(2, (side, side))


def inference(
    name: str, device: str, forms: list[str], folder: Path
) -> tuple[Forms, dict[str, float]]:
    """Features of one input, in the named forms, and their relative errors.

    Raises:
        ValueError: If a float32 form computes something else than timm's module.
    """
    networks = Networks(CASES[name], device)
    made = {form: networks.make_form(form, folder) for form in forms}
    reference = torch.load(folder / 'reference.pt', map_location=device)
    errors = {}
    for form, call in made.items():
        errors[form] = float((get_map(call()) - reference).norm() / reference.norm())
        # a GPU rounds the factors of convolutions by default
        strict = device == 'cpu' and get_precision(form) == 'f32'
        if strict and not errors[form] < TOLERANCE:
            raise ValueError(f'{name}, {form}: relative error {errors[form]:.1e}')
    return made, errors


def training(name: str, device: str) -> tuple[Forms, dict[str, int]]:
    """Forward and backward pass of a loss on the last output, and what is kept between them."""
    case = CASES[name]
    plain, saving = (Networks(case, device, training=True, with_cp=cp) for cp in (False, True))
    modules: dict[str, tuple[Any, Callable[..., Any], Tensor]] = {}
    if case.peer is not None:
        modules['timm'] = plain.peer, plain.peer, plain.x
        modules['timm channels_last'] = plain.last, plain.last, plain.x_last
    modules['mmpatch'] = plain.model, plain.model, plain.x
    modules['mmpatch with_cp'] = saving.model, saving.model, saving.x

    def step(call: Callable[..., Any], x: Tensor) -> None:
        out = call(x)
        (out[-1] if isinstance(out, tuple) else out).mean().backward()

    kept = {form: count_kept_bytes(m, partial(call, x)) for form, (m, call, x) in modules.items()}
    return {form: partial(step, call, x) for form, (_, call, x) in modules.items()}, kept


def count_kept_bytes(model: nn.Module, forward: Callable[[], Any]) -> int:
    """Bytes of the storages that autograd keeps of a forward pass, parameters apart."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, Any] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes(), tensor  # held, so that no other moves in
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        outs = forward()
    del outs
    return sum(size for size, _ in kept.values())
