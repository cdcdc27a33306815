"""Every private name of torch that the project uses, with a safe answer where one is missing.

They buy speed, derivatives under nested transforms of torch.func, and sight of hooks. Torch may rename them in any
release: nothing else depends on them, and importing this module never fails. `MISSING` says which are not there. What
native.c reads in torch's libraries it looks up by itself, compares with what these say, and does without.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
import torch.autograd.forward_ad
import torch.autograd.function
from torch import Tensor

from runtime.prepared import CPU

MISSING: list[str] = []
"""Names that this torch does not have."""


def _find(path: str) -> Any:
    """What stands at `path` below the package torch, or None."""
    try:
        return reduce(getattr, path.split("."), torch)
    except AttributeError:
        MISSING.append(path)
        return None


# For `ordinary`: the keys by which torch's dispatcher goes.
_KEY, _KEYS = _find("_C.DispatchKey"), _find("_C.DispatchKeySet")
keys_of = _find("_C._dispatch_keys")
included = _find("_C._dispatch_tls_local_include_set")
excluded = _find("_C._dispatch_tls_local_exclude_set")
profiling = _find("_C._autograd._profiler_enabled")
_LEVEL = hasattr(torch.autograd.forward_ad, "_current_level")
if not _LEVEL:
    MISSING.append("autograd.forward_ad._current_level")

# For derivatives: an autograd.Function below which operators are called, one level of torch.func at a time.
below_autograd = _find("_C._AutoDispatchBelowAutograd")
transforms = _find("_C._functorch.peek_interpreter_stack")
single_level = _find("_functorch.utils.enable_single_level_autograd_function")
forward_mode = _find("autograd.forward_ad._set_fwd_grad_enabled")
_function = _find("autograd.function._SingleLevelFunction")

NODES = None not in (below_autograd, transforms, single_level, forward_mode, _function)
"""Whether derivatives may be nodes of our own; otherwise torch.library makes them."""

Function: Any = _function or torch.autograd.Function
"""The base of nodes that are applied outside torch.func's transforms."""

# For tensors whose values wait (convgap/stand_in.py): made without memory, asked without their own answers.
wrapper_subclass = _find("Tensor._make_wrapper_subclass")
without_own_answers = _find("_C.DisableTorchFunctionSubclass")
hooks_on_saved = _find("_C._autograd._top_saved_tensors_default_hooks") or (lambda ignores_tracing: None)

WRAPPERS = None not in (wrapper_subclass, without_own_answers, transforms)
"""Whether such tensors can be made, and made outside torch.func's transforms only."""

# For what explains a call.
FakeTensor: Any = _find("_subclasses.FakeTensor") or ()
"""Of tensors without data; isinstance takes it."""
DispatchMode: Any = _find("utils._python_dispatch.TorchDispatchMode")
tree_leaves: Any = _find("utils._pytree.tree_leaves")
_tree_map: Any = _find("utils._pytree.tree_map")


class _NoMode:
    """In the place of DispatchMode: a call that nobody can listen to."""

    def __enter__(self) -> None:
        raise RuntimeError("this torch has no torch.utils._python_dispatch.TorchDispatchMode to explain calls with")

    def __exit__(self, *_: object) -> None: ...


DispatchMode = DispatchMode or _NoMode
tree_leaves = tree_leaves or (lambda tree: list(tree) if isinstance(tree, (list, tuple)) else [tree])


def tree_map(function: Callable[[Any], Any], tree: Any) -> Any:
    """`tree` with function(leaf) for each of its leaves."""
    if _tree_map is not None:
        return _tree_map(function, tree)
    if isinstance(tree, dict):
        return {key: tree_map(function, value) for key, value in tree.items()}
    return type(tree)(tree_map(function, part) for part in tree) if type(tree) in (list, tuple) else function(tree)


# For layers: who listens to a module's calls, and to those of every module.
HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_everywhere = tuple(_find(f"nn.modules.module._global{name}") for name in HOOKS)


def hooked(module: Any) -> bool:
    """Whether somebody listens to the module's calls: weight_norm, spectral_norm and pruning do so too."""
    return any(_everywhere) or any(getattr(module, name, None) for name in HOOKS)


# For launches.
_raw_stream = _find("_C._cuda_getCurrentRawStream")
_device = _find("_C._cuda_getDevice")
empty_strided_cuda = _find("_C._dynamo.guards._empty_strided_cuda")
"""(size, stride, dtype) -> fresh tensor on the current device, in a third of the time that torch.empty takes."""
exchange = _find("Tensor.__dlpack_c_exchange_api__")
"""The table of C functions by which DLPack passes tensors, as a capsule."""


def current_stream(device: torch.device) -> int:
    """Raw handle of the current stream of a CUDA device; 0 on the CPU."""
    if device == CPU:
        return 0
    if _raw_stream is None:
        return torch.cuda.current_stream(device).cuda_stream
    return _raw_stream(device.index)


def current_device() -> int:
    """Number of the current CUDA device."""
    return torch.cuda.current_device() if _device is None else _device()


def has_tangent(*tensors: Tensor | None) -> bool:
    """Whether forward-mode derivatives may be asked of a call with these tensors."""
    if _LEVEL:
        return torch.autograd.forward_ad._current_level >= 0
    unpack = torch.autograd.forward_ad.unpack_dual
    return any(tensor is not None and unpack(tensor).tangent is not None for tensor in tensors)


def _set(*names: str) -> int:
    """The dispatcher's set of keys with these names, as a number with a bit for each."""
    found = _KEYS(_KEY.Undefined)
    for name in names:
        found = found | _KEYS(getattr(_KEY, name))
    return found.raw_repr()


def _never(*_: Any) -> bool:
    return False


@dataclass(frozen=True)
class Keys:
    """Sets of the dispatcher's keys, each a number with a bit for each key."""

    usual: frozenset[int]
    """Of tensors made in inference mode, and of all others."""
    added: int
    """What a thread may add to the keys of every call; in inference mode `inplace` is missing."""
    inplace: int
    cast: int
    """Autocast's keys, which every thread excludes while autocast is off."""
    autograd: int
    """Autograd's keys, which a thread excludes in inference mode (still ordinary) and inside an operator's derivative
    (not ordinary)."""


def _make_keys() -> Keys | None:
    if None in (_KEY, _KEYS, keys_of, included, excluded, profiling) or not _LEVEL:
        return None
    try:
        usual = frozenset(
            _set(device, f"Autocast{device}", *more)
            for device in ("CPU", "CUDA")
            for more in ((), ("ADInplaceOrView", f"Autograd{device}"))
        )
        return Keys(
            usual,
            _set("BackendSelect", "ADInplaceOrView"),
            _set("ADInplaceOrView"),
            _set("AutocastCPU", "AutocastCUDA"),
            _set("AutogradCPU") & ~_set("CPU"),
        )
    except AttributeError as error:
        MISSING.append(str(error))
        return None


KEYS = _make_keys()
"""None where a name is missing by which `ordinary` goes."""


def _make_ordinary() -> Callable[..., bool]:
    """`ordinary`, or what always says no where one of its names is missing."""
    if KEYS is None:
        return _never
    usual, added, inplace, cast, autograd = KEYS.usual, KEYS.added, KEYS.inplace, KEYS.cast, KEYS.autograd
    forward_ad = torch.autograd.forward_ad

    def ordinary(*tensors: Tensor | None) -> bool:
        for tensor in tensors:
            if tensor is not None and keys_of(tensor).raw_repr() not in usual:
                return False
        adds, takes = included().raw_repr(), excluded().raw_repr()
        return (
            not adds & ~added
            and takes & cast == cast
            and not (takes & autograd and adds & inplace)
            and forward_ad._current_level < 0
            and not profiling()
        )

    return ordinary


ordinary = _make_ordinary()
"""ordinary(*tensors): whether torch's dispatcher would find nothing to do for a call but derivatives.

It goes by two sets of keys: those of the tensors (a subclass, a negation still to be done, ...) and those of the thread
(modes, transforms, autocast, tracing, ...). If both are the ordinary ones, no forward-mode derivative is asked for and
no profiler listens, it would end at the kernel or at its derivative, having taken about as long as all else that a call
costs the host. None stands for a tensor that is not there.
"""
