"""Every registered backbone and neck passes one list of tests, by being registered.

The classes come from the registry, their tiny forms from their signatures: one block a stage, the
fewest channels that the class accepts, and, of its ``ARCHS`` and of what its switches change, what
has a layer that no form before it has. A class without a tiny form fails, and so does one whose
names of tensors are not in ``data/state_dict_keys.json``; to write them:

    python tests/test_conformance.py
"""

import copy
import inspect
import json
import pickle
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from itertools import count, cycle, groupby, islice
from math import ceil, floor
from typing import Any, ClassVar

import pytest
import torch
import torch.distributed as dist
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from mmengine.model import BaseModule
from mmengine.runner.activation_checkpointing import turn_on_activation_checkpointing
from safetensors.torch import load_file, save_file
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.overrides import TorchFunctionMode

import mmpatch
from mmpatch.backbones import MetaFormer, PoolFormer
from mmpatch.backbones.base import Backbone
from mmpatch.backbones.metaformer import ACTIVATIONS, MEMORY_FORMATS
from mmpatch.backbones.names import find_network
from mmpatch.registry import MODELS

import golden
from support import kept_bytes, pretrained, relative_error

KEYS = golden.DATA / 'state_dict_keys.json'
WIDTHS = (8, 16, 24, 32, 48, 64, 96)
SIZE, STRIDE = (64, 96), 16  # pixels of images; of the maps that necks take
#: What required arguments of mixers are.
OF_MIXERS = {'mixer': 'Attention', 'window_size': 3}
#: Networks that timm has for tests, a pyramid and an isotropic one.
OF_TIMM = ('test_resnet', 'test_vit')
NORMS = ('BN', 'LN2d', 'GN1', {'type': 'GN', 'num_groups': 4}, None)
#: What arguments of these names are drawn from; others are drawn by their type.
CHOICES = {
    'norm_cfg': NORMS,
    'out_norm': (True, False, *NORMS),
    'act': tuple(ACTIVATIONS),
    'layer_scale': (None, 0.3),
    'memory_format': tuple(MEMORY_FORMATS),
    'out_indices': ((0,), (0, 1), (1, 2)),
}
AUTOCAST = (None, torch.bfloat16, torch.float16)


@dataclass(frozen=True, eq=False)
class Form:
    """A class and the arguments of a tiny network."""

    cls: type
    name: str
    arguments: dict[str, Any]

    def build(self, **changes):
        """The network; ``ExportedBackbone`` gets the file of another form."""
        if 'file' in self.arguments:
            return load_exported(self.cls)
        return self.cls(**{**self.arguments, **changes})

    def __str__(self):
        return self.name


def list_classes():
    """Networks of mmpatch that hosts build, by name."""
    MODELS.import_from_location()
    return {
        name: cls
        for name, cls in sorted(MODELS.module_dict.items())
        if inspect.isclass(cls)
        and cls.__module__.startswith('mmpatch.')
        and (issubclass(cls, BaseModule) or cls.__module__.split('.')[1] in ('backbones', 'necks'))
    }


@cache
def list_arguments(cls):
    """Arguments of a constructor and those that it passes on to its base, by name."""
    found = {}
    for base in cls.__mro__:
        if '__init__' in vars(base):
            own = inspect.signature(base).parameters
            found = {name: p for name, p in own.items() if p.kind != p.VAR_KEYWORD} | found
            if all(p.kind != p.VAR_KEYWORD for p in own.values()):
                break
    return found


def list_needed(cls):
    own = inspect.signature(cls).parameters.values()
    return [p.name for p in own if p.default is p.empty and p.kind != p.VAR_KEYWORD]


class WithoutClamps(TorchFunctionMode):
    """What starts weights clamps them, which takes most of a network's time on the meta device."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return args[0] if func is torch.Tensor.clamp_ else func(*args, **kwargs or {})


def build_on_meta(cls, arguments):
    with torch.device('meta'), WithoutClamps():
        return cls(**arguments)


def accept(cls, arguments, changes):
    """Arguments with those changes that go with them; an error about arguments refuses one."""
    for name, value in changes.items():
        with suppress(TypeError, ValueError):
            build_on_meta(cls, {**arguments, name: value})
            arguments = {**arguments, name: value}
    return arguments


def is_trained(cls):
    """All but a file of an engine, which has no parameters and refuses to train."""
    return 'file' not in list_arguments(cls)


def is_neck(cls):
    return 'in_stride' in list_arguments(cls)


@cache
def list_rows(cls):
    """Arguments that a class needs, of each kind of network that it knows."""
    needed = list_needed(cls)
    if not needed:
        return {arch: {'arch': arch} for arch in getattr(cls, 'ARCHS', ())} or {'': {}}
    if needed == ['depths', 'dims', 'token_mixers']:
        mixers = []
        for name, mixer in sorted(MODELS.module_dict.items()):
            if inspect.isclass(mixer) and mixer.__module__.startswith('mmpatch.mixers'):
                more = {asked: OF_MIXERS[asked] for asked in list_needed(mixer) if asked != 'dim'}
                mixers.append({'type': name, **more})
        depth = ceil(len(mixers) / 4)
        blocks = list(islice(cycle(mixers), 4 * depth))
        return {'': {'depths': (depth,) * 4, 'dims': (96, 192) * 2, 'token_mixers': blocks}}
    if needed == ['model_name', 'out_indices']:
        found = {name: find_network(f'timm://{name}') for name in OF_TIMM}
        return {n: {key: row[key] for key in row if key != 'type'} for n, row in found.items()}
    if needed == ['file']:
        return {'': {'file': None}}
    raise ValueError(f'it needs {needed}: give them defaults, or an arch in ARCHS')


@cache
def make_form(cls, row):
    """The tiny form of one of the rows of a class.

    Raises:
        ValueError: If there is none; the message says why.
    """
    arguments, name = list_rows(cls)[row], f'{cls.__name__} {row}'.strip()
    error = None
    for width in WIDTHS if is_neck(cls) or 'depths' in list_arguments(cls) else ():
        arguments = arguments | get_size(cls, width)
        try:
            model = build_on_meta(cls, arguments)
        except ValueError as refusal:
            error = refusal
            continue
        levels = getattr(getattr(model, 'stem', None), 'level_channels', None)
        if levels is not None:  # of a stem that is a network itself
            stem = {'type': type(model.stem).__name__, 'depths': (1,) * len(levels[:2])}
            arguments |= {'stem': stem, 'stem_indices': tuple(range(len(levels[:2])))}
        return Form(cls, name, arguments)
    if error:
        raise ValueError(f'none of {WIDTHS} channels fits: {error}')
    return Form(cls, name, arguments)


def get_size(cls, width):
    """Arguments that make a network of one width."""
    arguments = list_arguments(cls)
    if is_neck(cls):
        inputs = (width,) * len(arguments['scale_factors'].default)
        outputs = {'out_channels': width} if 'out_channels' in arguments else {}
        return {'in_channels': inputs, 'in_stride': STRIDE, **outputs}
    depths, is_pyramid = get_shape(cls)
    return {
        'depths': depths,
        'dims': [width * min(2**i, 4) for i in range(len(depths))] if is_pyramid else width,
    }


@cache
def get_shape(cls):
    """Blocks of each stage, and whether the stages differ in width."""
    first = next(iter(list_rows(cls).values()))
    whole = build_on_meta(cls, first)
    return first.get('depths', (1,) * len(whole.depths)), len(set(whole.out_channels)) > 1


def list_switches(cls):
    """Arguments of the class itself that turn something on or off, turned."""
    own = inspect.signature(cls).parameters.items()
    flags = {name: not p.default for name, p in own if p.annotation is bool}
    return flags | {name: 7 for name, p in own if p.annotation == int | None}


def find_forms(cls):
    """Tiny forms of a class, each with a kind of layer that those before it lack."""
    first, *forms = [make_form(cls, row) for row in list_rows(cls)]
    if not is_trained(cls):
        return [first]
    switched = accept(cls, first.arguments, list_switches(cls))
    found, known = [], set()
    for form in (first, Form(cls, f'{cls.__name__} switched', switched), *forms):
        kinds = {type(module) for module in build_on_meta(cls, form.arguments).modules()}
        if kinds - known:
            found.append(form)
            known |= kinds
    return found


def try_forms(cls):
    """Tiny forms of a class, none if there are none, and why there are none."""
    try:
        return find_forms(cls), None
    except Exception as error:  # a class that cannot be built must not end the others' tests
        return [], error


CLASSES = list_classes()
FOUND = {name: try_forms(cls) for name, cls in CLASSES.items()}
FORMS = [form for forms, _ in FOUND.values() for form in forms]


def has(*names):
    """Whether a class has arguments or methods of these names."""
    return lambda cls: all(name in list_arguments(cls) or hasattr(cls, name) for name in names)


def is_own(cls):
    """Whether its blocks are of this package, so that they can be folded."""
    return issubclass(cls, MetaFormer)


def over_forms(applies=lambda cls: True):
    """One test for each tiny form of the classes to which it applies."""
    forms = [form for form in FORMS if applies(form.cls)]
    assert forms, 'a test that applies to no class'
    return pytest.mark.parametrize('form', forms, ids=str)


DRAWN = partial(
    settings,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.generate],  # the first network that fails is small enough
    suppress_health_check=list(HealthCheck),
)


def over_settings(number, applies=lambda cls: True):
    """One test for each class to which it applies, of a number of networks that are drawn."""
    names = [name for name, cls in CLASSES.items() if applies(cls) and FOUND[name][0]]

    def decorate(test):
        return pytest.mark.parametrize('name', names)(
            DRAWN(max_examples=number)(given(data=st.data())(test))
        )

    return decorate


def vary(form, changes):
    """A form with those of some settings that go with it."""
    return Form(form.cls, form.name, accept(form.cls, form.arguments, changes))


def draw_form(data, cls):
    """A tiny network of any row of a class, with settings that go with it."""
    form = make_form(cls, data.draw(st.sampled_from(list(list_rows(cls))), 'row'))
    choices = {}
    for name, p in list_arguments(cls).items():
        if p.default is p.empty:
            continue
        if name in CHOICES:
            choices[name] = st.sampled_from(CHOICES[name])
        elif p.annotation is bool:
            choices[name] = st.booleans()
        elif p.annotation == int | None:
            choices[name] = st.integers(5, 9) | st.none()
        elif p.annotation is float and 'drop' in name:
            choices[name] = st.just(0.3)
    drawn = data.draw(st.fixed_dictionaries({}, optional=choices), 'settings')
    return vary(form, drawn)


def draw_size(data):
    return data.draw(st.tuples(*[st.integers(33, 100)] * 2), 'size')


@cache
def load_exported(cls):
    """The network of a file, which is the smallest of the others, exported."""
    models = (form.build() for form in FORMS if is_own(form.cls))
    model = min(models, key=lambda model: sum(p.numel() for p in model.parameters()))
    with tempfile.TemporaryDirectory() as folder:
        file = f'{folder}/network.pt2'
        mmpatch.export(golden.randomize(model), file, input_size=(2, 3, *SIZE))
        return cls(file).eval()


def make_network(form, device='cpu', **changes):
    """A network in evaluation, none of whose tensors is right by its start."""
    return golden.randomize(form.build(**changes)).to(device)


def make_input(model, batch=2, size=SIZE, device='cpu'):
    """Images, or for a neck the maps of images whose sides are completed."""
    channels = getattr(model, 'in_channels', 3)
    if isinstance(channels, int):
        return torch.randn(batch, channels, *size, device=device)
    sides = [ceil(side / STRIDE) for side in size]
    return [torch.randn(batch, c, *sides, device=device) for c in channels]


def change(x, function):
    """Images or maps, changed."""
    return function(x) if isinstance(x, torch.Tensor) else [function(y) for y in x]


def compute(model, x):
    with torch.no_grad():
        return model(x)


def get_loss(outs):
    return sum(y.float().square().mean() for y in outs)


def get_gradients(model):
    """Of all parameters that learn, by name; each must have one."""
    found = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    missing = [name for name, grad in found.items() if grad is None]
    assert not missing, f'no gradient reaches {missing}'
    return found


def assert_same_gradients(model, expected):
    """Of noise around zero, such as that of a bias in front of a norm, only the size counts."""
    found, largest = get_gradients(model), max(grad.norm() for grad in expected.values())
    assert found.keys() == expected.keys()
    for name, grad in expected.items():
        assert (found[name] - grad).norm() <= 1e-5 * grad.norm() + 1e-6 * largest, name


def assert_near(outs, references, bound=1e-5):
    for y, reference in zip(outs, references, strict=True):
        assert y.shape == reference.shape
        assert relative_error(y, reference) < bound


def freeze_norms(model):
    """Let batch norms keep their statistics, whose noise on few samples is no error."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
    return model


def list_keys(model):
    """Names in a state dict, one line a module."""
    names = (name.rpartition('.') for name in model.state_dict())
    return [
        f'{module}: {" ".join(name for *_, name in rows)}'
        for module, rows in groupby(names, lambda row: row[0])
    ]


@pytest.fixture(scope='module')
def process_group():
    dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize('name', CLASSES)
def test_every_class_has_a_tiny_form(name):
    forms, error = FOUND[name]
    assert forms, f'mmpatch.{name} is registered, but has no tiny form: {error!r}'


def test_a_class_that_is_new_is_found_or_named():
    class Wide(PoolFormer):
        ARCHS: ClassVar = {'one': PoolFormer.ARCHS['s12-ppaa']}

        def __init__(self, arch='one', **kwargs):
            super().__init__(arch, **kwargs)

    class Odd(BaseModule):
        def __init__(self, colour):
            super().__init__()

    (form,) = find_forms(Wide)
    assert len(form.build()(torch.randn(1, 3, *SIZE))) == 4
    with pytest.raises(ValueError, match=r"needs \['colour'\]: give them defaults"):
        find_forms(Odd)


@over_forms()
def test_names_of_tensors_stay(form):
    stored, write = json.loads(KEYS.read_text()), 'python tests/test_conformance.py writes names'
    assert str(form) in stored, f'{form} is new, and its names are not stored: {write}'
    same = list_keys(form.build()) == stored[str(form)]
    assert same, f'{form} no longer takes its checkpoints; {write}, if a mixer is new'


def check_maps(model, outs, batch, size):
    """Channels and strides are those that the network tells; sizes are rounded either way."""
    step = STRIDE if is_neck(type(model)) else 1
    for y, channels, stride in zip(outs, model.out_channels, model.out_strides, strict=True):
        assert y.shape[:2] == (batch, channels)
        for got, side in zip(y.shape[2:], size, strict=True):
            exact = step * ceil(side / step) / stride
            assert max(floor(exact), 1) <= got <= ceil(exact)
        assert y.isfinite().all()


@over_settings(6)
def test_maps_are_those_that_are_told(name, device, data):
    torch.manual_seed(0)
    form = draw_form(data, CLASSES[name])
    model = form.build().to(device).eval()
    batch, size = data.draw(st.integers(1, 3), 'batch'), draw_size(data)
    outs = compute(model, make_input(model, batch, size, device))
    check_maps(model, outs, batch, size)


@over_forms()
def test_maps_of_the_size_of_the_pre_training(form, device, torch_seed):
    """224 is a multiple of all strides, which it tells apart; a map of it is not resampled."""
    model = form.build().to(device).eval()
    outs = compute(model, make_input(model, 1, (224, 224), device))
    check_maps(model, outs, 1, (224, 224))


@over_forms()
def test_batches_are_independent(form, device, torch_seed):
    """Of 0, 1 and 3 images."""
    model = make_network(form, device)
    x = make_input(model, 3, device=device)
    outs = compute(model, x)
    singles = [compute(model, change(x, lambda y, i=i: y[i : i + 1])) for i in range(3)]
    assert_near(map(torch.cat, zip(*singles, strict=True)), outs)
    empty = compute(model, change(x, lambda y: y[:0]))
    assert [y.shape for y in empty] == [(0, *y.shape[1:]) for y in outs]


@over_forms()
def test_a_pixel_that_is_no_number_is_not_hidden(form, device):
    model = form.build().to(device).eval()
    x = make_input(model, 1, device=device)
    for y in [x] if isinstance(x, torch.Tensor) else x:
        y[0, :, 0, 0] = float('nan')
    assert all(y.isnan().any() for y in compute(model, x))


#: The same numbers in other places of memory.
LAYOUTS = {
    'contiguous': lambda x: x.contiguous(),
    'channels_last': lambda x: x.contiguous(memory_format=torch.channels_last),
    'columns first': lambda x: x.mT.contiguous().mT,
    'every second': lambda x: x.repeat_interleave(2, 3)[..., ::2],
    'behind others': lambda x: torch.cat([x, x], 1)[:, x.shape[1] :],
}


@over_forms()
def test_the_layout_of_the_input_changes_nothing(form, device, torch_seed):
    model = make_network(form, device)
    x = make_input(model, device=device)
    outs, kept = compute(model, x), change(x, torch.clone)
    for lay in LAYOUTS.values():
        assert_near(compute(model, change(x, lay)), outs)
    one = change(x, lambda y: y[:1])
    twice = compute(model, change(one, lambda y: y.expand(2, -1, -1, -1)))
    assert_near(twice, [torch.cat([y, y]) for y in compute(model, one)])
    torch.testing.assert_close(x, kept, rtol=0, atol=0, msg='the input was overwritten')


@over_forms(has('memory_format'))
@pytest.mark.parametrize('layout', ['contiguous', 'channels_last'])
def test_the_layout_of_the_maps_is_the_one_that_is_asked_for(form, layout, device, torch_seed):
    plain, model = make_network(form, device), make_network(form, device, memory_format=layout)
    x, seen = make_input(model, device=device), []
    for module in (model.stem, model.stages[0]):
        module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    assert_near(compute(model, x), compute(plain, x))
    assert all(y.is_contiguous(memory_format=MEMORY_FORMATS[layout]) for y in seen)


@over_forms(is_trained)
def test_every_parameter_learns(form, device, torch_seed):
    """Under autocast as near to float32 as a network all of which is in the same precision."""
    model = freeze_norms(make_network(form, device).train())
    x = make_input(model, device=device)

    def step(model, x, dtype=None):
        model.zero_grad()
        with torch.autocast(device, dtype, enabled=dtype is not None):
            outs = model(x)
        get_loss(outs).backward()
        grads = get_gradients(model)
        assert not [name for name, grad in grads.items() if not grad.any()]
        rows = outs, grads.values()
        return [torch.cat([y.float().flatten() for y in row]) for row in rows]

    exact = step(model, x)
    for dtype in AUTOCAST[1:]:
        half = step(copy.deepcopy(model).to(dtype), change(x, lambda y, dtype=dtype: y.to(dtype)))
        for a, b, c in zip(step(model, x, dtype), half, exact, strict=True):
            assert a.isfinite().all()
            assert relative_error(a, c) < 1.5 * relative_error(b, c) + 1e-2, dtype


@over_forms(is_trained)
@pytest.mark.parametrize('dtype', AUTOCAST[1:], ids=str)
def test_half_weights_evaluate(form, dtype, device, torch_seed):
    model = make_network(form, device)
    x = make_input(model, device=device)
    outs = compute(model, x)
    halves = compute(model.to(dtype), change(x, lambda y: y.to(dtype)))
    assert {y.dtype for y in halves} == {dtype}
    assert_near(halves, outs, 0.1)


@over_settings(5, has('with_cp'))
def test_recomputing_changes_nothing(name, device, data):
    """Outputs, gradients of all parameters, statistics; with drops, with any settings."""
    torch.manual_seed(0)
    form = draw_form(data, CLASSES[name])
    size, results = draw_size(data), []
    own = {} if is_own(form.cls) else {'norm_eval': True}  # timm counts statistics twice
    plain, saving = (form.build(**own, with_cp=with_cp) for with_cp in (False, True))
    saving.load_state_dict(golden.randomize(plain).state_dict())
    x = make_input(plain, 3, size, device)
    for model in (plain, saving):
        model.to(device).train()
        torch.manual_seed(1)
        results.append(model(x))
        get_loss(results[-1]).backward()
    assert_near(*results)
    assert_same_gradients(saving, get_gradients(plain))
    for (key, a), b in zip(plain.named_buffers(), saving.buffers(), strict=True):
        torch.testing.assert_close(b, a, msg=key)


@over_forms(is_own)
def test_mmengines_activation_checkpointing_keeps_less(form, torch_seed):
    model = form.build(out_norm=False).train()
    x = make_input(model)
    freeze_norms(model)
    before, outs = kept_bytes(model, x), model(x)
    get_loss(outs).backward()
    grads = {name: grad.clone() for name, grad in get_gradients(model).items()}
    blocks = [
        f'stages.{i}.blocks.{j}' for i, s in enumerate(model.stages) for j in range(len(s.blocks))
    ]
    turn_on_activation_checkpointing(model, blocks)
    assert kept_bytes(model, x) < before
    model.zero_grad()
    again = model(x)
    get_loss(again).backward()
    assert_near(again, outs)
    assert_same_gradients(model, grads)


def list_frozen(model):
    return {name for name, p in model.named_parameters() if not p.requires_grad}


def list_used(model, x):
    """Of each output the names of the parameters that it depends on."""
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    used = []
    for y in model.train()(x):
        grads = torch.autograd.grad(
            y.sum(), learning.values(), allow_unused=True, retain_graph=True
        )
        used.append([name for name, grad in zip(learning, grads, strict=True) if grad is not None])
    return used


def train_one_step(model, x, dtype):
    """Outputs, and names of the tensors that the step moved."""
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), 0.1, weight_decay=0.1)
    with torch.autocast('cpu', dtype, enabled=dtype is not None):
        outs = model(x)
    loss = get_loss(outs)
    if loss.requires_grad:
        loss.backward()
    optimizer.step()
    return outs, {k for k, y in model.state_dict().items() if not torch.equal(y, before[k])}


@over_forms(has('frozen_stages', 'get_layer_depth'))
@DRAWN(max_examples=3)
@given(data=st.data())
def test_frozen_stages_stay_and_all_else_learns(form, data):
    """What is frozen runs before what learns; norms of frozen maps belong to it."""
    torch.manual_seed(0)
    names = [n for n in ('norm_cfg', 'out_norm') if n in list_arguments(form.cls)]
    choices = {name: st.sampled_from(CHOICES[name]) for name in names}
    choices |= {'with_cp': st.booleans(), 'norm_eval': st.booleans()}
    form = vary(form, data.draw(st.fixed_dictionaries(choices), 'settings'))
    dtype, hooked = data.draw(st.sampled_from(AUTOCAST)), data.draw(st.booleans())
    model = form.build()
    x, always, before = make_input(model), list_frozen(model), set()
    used = list_used(model, x)
    depths = {n: model.get_layer_depth(n) for n, _ in model.named_parameters()}
    depths = {n: depth for n, (depth, number) in depths.items() if depth < number - 1}
    for stages in count(-1):
        try:
            model = form.build(frozen_stages=stages).train(False).train()
        except ValueError:  # more than there are
            break
        for module in model.modules() if hooked else ():
            module.register_forward_hook(lambda *_: None)
        frozen = list_frozen(model) - always
        assert before < frozen if stages >= 0 else not frozen
        end = max((depths[name] for name in frozen if name in depths), default=-1)
        assert {n for n in depths if depths[n] <= end} - always == frozen & depths.keys()
        outs, moved = train_one_step(model, x, dtype)
        learns = [max(depths.get(name, 0) for name in row) > end for row in used]
        assert [y.requires_grad for y in outs] == learns
        assert all(grad.isfinite().all() for grad in get_gradients(model).values())
        assert not moved & (frozen | always)
        for start, module in model.named_modules():
            own = [name for name, _ in module.named_parameters(recurse=False)]
            whole = {f'{start}.{name}' for name, _ in module.named_parameters()}
            if own and whole <= frozen:
                assert not module.training, start
                assert not moved & {f'{start}.{name}' for name, _ in module.named_buffers()}
            elif own and isinstance(module, _BatchNorm):
                assert module.training != form.arguments['norm_eval'], start
        before = frozen
    assert stages > 1


@over_forms(is_trained)
def test_modes(form, device, torch_seed):
    """Drops and statistics of batches are of training alone."""
    drops = {
        name: 0.5
        for name, p in list_arguments(form.cls).items()
        if 'drop' in name and p.annotation is float
    }
    plain, model = make_network(form, device), make_network(form, device, **drops)
    x = make_input(model, device=device)
    outs, state = compute(plain, x), copy.deepcopy(model.state_dict())
    for _ in range(2):
        for y, reference in zip(compute(model, x), outs, strict=True):
            assert torch.equal(y, reference)
    assert not [
        key for key, tensor in model.state_dict().items() if not torch.equal(tensor, state[key])
    ]
    model.train()
    assert all(module.training for module in model.modules())
    if drops:
        assert not torch.equal(compute(model, x)[-1], compute(model, x)[-1])
    else:
        compute(model, x)
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    assert all(norm.num_batches_tracked > 0 for norm in norms)
    model.eval()
    assert not any(module.training for module in model.modules())


@over_forms()
def test_seeds_decide_everything(form, device):
    found = []
    for _ in range(2):
        torch.manual_seed(3)
        model = form.build().to(device).train(is_trained(form.cls))
        x = make_input(model, device=device)
        outs = model(x)
        if is_trained(form.cls):
            get_loss(outs).backward()
            found.append([*outs, *model.state_dict().values(), *get_gradients(model).values()])
        else:
            found.append(outs)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@over_forms(is_trained)
def test_weights_go_through_safetensors(form, tmp_path, torch_seed):
    model, file = make_network(form), tmp_path / 'weights.safetensors'
    save_file({key: tensor.contiguous() for key, tensor in model.state_dict().items()}, file)
    if issubclass(form.cls, Backbone):  # whose init_cfg takes any file
        other = form.build(init_cfg=pretrained(file))
        other.init_weights()
    else:
        other = form.build()
        other.load_state_dict(load_file(file))
    x = make_input(model)
    for a, b in zip(compute(other.eval(), x), compute(model, x), strict=True):
        assert torch.equal(a, b)


@over_forms(is_trained)
@pytest.mark.parametrize(
    'copied', [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=['deepcopy', 'pickle']
)
def test_copies(form, copied, torch_seed):
    model = make_network(form)
    x, other = make_input(model), copied(model)
    outs = compute(model, x)
    for a, b in zip(compute(other, x), outs, strict=True):
        assert torch.equal(a, b)
    assert vars(other).get('settings') == vars(model).get('settings')
    for parameter in other.parameters():
        parameter.data.zero_()
    for a, b in zip(compute(model, x), outs, strict=True):
        assert torch.equal(a, b), 'the copy shares memory'


@over_forms(is_trained)
def test_shapes_on_the_meta_device(form):
    real, model = form.build(), build_on_meta(form.cls, form.arguments)
    for train in (True, False):
        x = make_input(real)
        shapes = [y.shape for y in real.train(train)(x)]
        outs = model.train(train)(change(x, lambda y: y.to('meta')))
        assert [y.shape for y in outs] == shapes and all(y.is_meta for y in outs)


@over_forms(is_trained)
def test_distributed_training(form, process_group, torch_seed):
    """Two steps, since the second fails where a parameter was not used in the first."""
    model = make_network(form).train()
    wrapped, x = DistributedDataParallel(copy.deepcopy(model)), make_input(model)
    for _ in range(2):
        for network in (model, wrapped):
            network.zero_grad()
            get_loss(network(x)).backward()
    assert_same_gradients(wrapped.module, get_gradients(model))


@over_forms(is_trained)
def test_is_exported(form, torch_seed):
    model = make_network(form)
    x = make_input(model)
    with torch.no_grad():
        assert_near(torch.export.export(model, (x,)).module()(x), model(x))


@pytest.mark.parametrize('name', [n for n, (forms, _) in FOUND.items() if is_trained(CLASSES[n])])
def test_compiles_whole(name, torch_seed):
    """No break in the graph, in training; the first form of a class stands for all."""
    model = freeze_norms(make_network(FOUND[name][0][0]).train())
    x = make_input(model)
    outs = model(x)
    get_loss(outs).backward()
    grads = {key: grad.clone() for key, grad in get_gradients(model).items()}
    model.zero_grad()
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend='eager')(x)
    get_loss(compiled).backward()
    assert_near(compiled, outs)
    assert_same_gradients(model, grads)


@over_settings(5, is_own)
def test_folded_networks_equal_their_own(name, device, data):
    torch.manual_seed(0)
    form = draw_form(data, CLASSES[name])
    model = make_network(form, device)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.running_var.mul_(1e-4)  # next to which eps counts
    x = make_input(model, size=draw_size(data), device=device)
    assert_near(compute(mmpatch.deploy(model), x), compute(model, x))


@over_forms(is_own)
def test_folded_networks_take_what_others_take(form, device, torch_seed):
    model = make_network(form, device)
    deployed, x = mmpatch.deploy(model), make_input(model, device=device)
    outs, kept = compute(model, x), x.clone()
    for _ in range(2):  # nothing is overwritten
        assert_near(compute(deployed, x), outs)
    assert torch.equal(x, kept)
    assert_near(deployed(x.requires_grad_()), outs)  # outside no_grad
    assert [y.shape[0] for y in compute(deployed, x[:0])] == [0] * len(outs)
    with torch.autocast(device, torch.bfloat16):
        found, others = compute(deployed, x), compute(model, x)
    for a, b, c in zip(found, others, outs, strict=True):
        assert relative_error(a, c) < 1.5 * relative_error(b, c) + 1e-2
    half = x.detach().bfloat16()
    found, others = (
        compute(deployed.bfloat16(), half),
        compute(copy.deepcopy(model).bfloat16(), half),
    )
    for a, b, c in zip(found, others, outs, strict=True):
        assert relative_error(a, c) < 1.5 * relative_error(b, c) + 1e-2
    shapes = [y.shape for y in mmpatch.deploy(model.to('meta'))(x.to('meta'))]
    assert shapes == [y.shape for y in outs]


@over_forms(has('get_layer_depth'))
def test_depths_grow_along_the_network(form, torch_seed):
    """From 0, one by one, in the order in which layers run; the last is of outputs and heads."""
    model = form.build().eval()
    seen = []

    def note(prefix):
        names = [
            f'{prefix}.{n}' for n, _ in model.get_submodule(prefix).named_parameters(recurse=False)
        ]
        return lambda *_: seen.extend(
            model.get_layer_depth(f'backbone.{n}', 'backbone.') for n in names
        )

    for prefix, module in model.named_modules():
        module.register_forward_pre_hook(note(prefix))
    compute(model, make_input(model))
    (number,) = {number for _, number in seen}
    depths = [depth for depth, _ in seen if depth < number - 1]
    assert depths == sorted(depths)
    assert set(depths) == set(range(number - 1))


if __name__ == '__main__':
    KEYS.write_text(
        json.dumps({str(form): list_keys(form.build()) for form in FORMS}, indent=0) + '\n'
    )
