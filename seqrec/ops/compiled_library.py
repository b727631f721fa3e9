"""The library of compiled CPU kernels, built from `cpp/kernels.cpp`: find it, open it, call it.

It has a plain C interface and is loaded through ctypes, so one build works with every version of torch. One library is
built for each vector width; the widest that the CPU supports is loaded.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.machinery
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from seqrec.errors import InputError
from seqrec.ops.backends import MIXED_DTYPES, Backend, Function

FOLDER = Path(__file__).parent
# Libraries from the widest vectors to the narrowest: name, floats per vector, CPU capabilities in torch's names.
VARIANTS = (
    ("_kernels_avx512", 16, ("AVX512",)),
    ("_kernels_avx2", 8, ("AVX512", "AVX2")),
    ("_kernels_baseline", 4, None),
)


def _layout(numbers: str, pointers: str) -> type[ctypes.Structure]:
    """Return a struct of `cpp/problems.h` by the names of its fields, integers and then pointers."""
    fields = [(name, ctypes.c_int64) for name in numbers.split()] + [
        (name, ctypes.c_void_p) for name in pointers.split()
    ]
    return type("Layout", (ctypes.Structure,), {"_fields_": fields})


# Op -> type of the one argument of its functions: OP, or OP_forward and OP_backward.
LAYOUTS: Mapping[str, type[ctypes.Structure]] = {
    "scan": _layout(
        "batch length channels states interval groups z_event weights_event dz_event dweights_event threads softplus"
        " narrow",
        "valid start u delta z A B C D delta_bias initial_state y last_state kept_states"
        " dy dlast_state du ddelta dz dA dD ddelta_bias dB dC dinitial_state",
    ),
    "ssd": _layout(
        "batch length heads width groups states interval parts x_event delta_event weights_event"
        " dx_event ddelta_event dweights_event threads softplus",
        "start x delta A B C D delta_bias initial_state y last_state kept_states"
        " dy dlast_state dx ddelta dA dD dB dC dinitial_state",
    ),
    "gated_norm": _layout("events width z_event dz_event piece threads", "y z weight out dout dy dz dweight"),
    "conv": _layout(
        "batch length channels taps row_stride event_stride dx_event piece threads silu narrow",
        "valid start x weight bias initial_state out last_state dout dlast_state dx dweight dbias dinitial_state",
    ),
    "product": _layout("rows columns steps c_row a_row b_row add threads", "A B C"),
    "attention": _layout(
        "batch length heads width query_row query_head query_event key_row key_head key_event"
        " value_row value_head value_event dout_row dout_head dout_event causal window threshold parts threads",
        "seed lengths query key value out statistics dout dquery dkey dvalue",
    ),
    "dropout": _layout("count threshold threads", "seed x y"),
    "event_input": _layout(
        "events width tables boundaries second offset no_time threads", "parts times before boundary refused out"
    ),
    "mamba_step": _layout(
        "batch width channels states taps rank inputs_stride state_stride threads",
        "x in_weight conv_weight conv_bias scan_weight delta_weight delta_bias A_log D out_weight inputs state"
        " rows next_rows out next_inputs next_state",
    ),
    "mamba2_step": _layout(
        "batch width heads head_width states taps inputs_stride state_stride threads",
        "x in_weight conv_weight conv_bias delta_bias A_log D norm_weight out_weight inputs state"
        " rows next_rows out next_inputs next_state",
    ),
    "attention_step": _layout(
        "batch heads head_width window threads",
        "turns num_events x in_weight in_bias out_weight out_bias keys values out next_keys next_values",
    ),
    "pair_scores": _layout(
        "events draws width parts threads", "item_ids states vectors scores dscores dstates dvectors"
    ),
    "weight_gradient": _layout("rows outputs inputs dout_row x_row parts threads", "dout x dweight dbias"),
    "cross_entropy": _layout(
        "events candidates width row tile threads",
        "own states target vectors packed log_weights weights largest totals dstates scaled dvectors",
    ),
    "best_items": _layout(
        "users rows width first k num_blocked tile threads",
        "states vectors chosen offsets excluded blocked scores item_ids",
    ),
    "residual_norm": _layout(
        "events width threshold piece threads",
        "seed x branch weight bias out norm means roots dout dnorm dx dbranch dweight dbias",
    ),
}


def _open(path: Path, lanes: int) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    names = ("kernel_lanes", *(f"{op}_problem_bytes" for op in LAYOUTS))
    measures = [getattr(library, name) for name in names]
    for measure in measures:
        measure.restype = ctypes.c_int64
    expected = [lanes, *map(ctypes.sizeof, LAYOUTS.values())]
    if [measure() for measure in measures] != expected:
        raise OSError(f"{path} was built from another version of its source; install seqrec again")
    return library


@functools.cache
def load() -> tuple[ctypes.CDLL | None, str]:
    """Return the library and its variant's name, or None and the reason."""
    capability, reasons = torch.backends.cpu.get_cpu_capability(), []
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    for name, lanes, needs in VARIANTS:
        if needs is not None and not (is_x86 and capability in needs):
            continue
        paths = [FOLDER / (name + suffix) for suffix in importlib.machinery.EXTENSION_SUFFIXES]
        path = next((path for path in paths if path.exists()), None)
        if path is None:
            continue
        try:
            return _open(path, lanes), name
        except (OSError, AttributeError) as error:
            reasons.append(f"{path.name}: {error}")
    missing = (
        f"no compiled library in {FOLDER}: it could not be built when seqrec was installed. Install a C++17 compiler "
        "(gcc or clang), then seqrec again with pip's --force-reinstall; pip's -v shows the compiler's messages"
    )
    return None, "; ".join(reasons) or missing


def load_error() -> str | None:
    """Return why the compiled kernels are unavailable, with the fix; None if they are available."""
    library, text = load()
    return text if library is None else None


def variant() -> str | None:
    """Return the name of the library in use, such as "_kernels_avx512"; None if no library is available."""
    library, text = load()
    return None if library is None else text


def compiled_backend(
    function: Function, unsupported_args: frozenset[str] = frozenset(), narrow: tuple[torch.dtype, ...] = ()
) -> Backend[Function]:
    """Describe an op's backend "cpp", for a function that calls the library; arguments as in `Backend`."""
    return Backend(
        "cpp",
        function,
        "float32 on cpu",
        supports=lambda device, dtype: device == "cpu" and dtype == torch.float32,
        missing=load_error,
        unsupported_args=unsupported_args | {MIXED_DTYPES},
        narrow=narrow,
    )


def call(function: str, numbers: Mapping[str, int], tensors: Mapping[str, Tensor | None]) -> None:
    """Run one of the library's functions on torch's number of threads.

    Args:
        function: Its name.
        numbers: Field -> number.
        tensors: Field -> float32, bfloat16, int64 or bool tensor on CPU, laid out as in `cpp/problems.h`. The caller
            keeps a reference during the call. None is a null pointer.

    Raises:
        InputError: if the library is unavailable.
        MemoryError: if the working memory cannot be allocated.
    """
    library, reason = load()
    if library is None:
        raise InputError(f"the compiled {function} is unavailable: {reason}")
    pointers = {name: tensor.data_ptr() for name, tensor in tensors.items() if tensor is not None}
    op = function.removesuffix("_forward").removesuffix("_backward")
    problem = LAYOUTS[op](threads=torch.get_num_threads(), **numbers, **pointers)
    if getattr(library, function)(ctypes.byref(problem)):
        raise MemoryError(f"the compiled {function} cannot allocate its working memory")


def distance(x: Tensor) -> int:
    """Return the numbers from one event of x (B, L, ...) to the next; torch's stride of a single event may differ."""
    return x.stride(0) if x.shape[1] == 1 else x.stride(1)


def by_event(*tensors: Tensor) -> list[Tensor]:
    """Return tensors (B, L, ...) whose rows follow each other at one distance between events, the same for all.

    A part of the last axis of a contiguous tensor is returned unchanged.
    """
    fits = len({distance(x) for x in tensors}) == 1 and all(
        x.numel() == 0 or (x.stride(0) == x.shape[1] * distance(x) and x[0, 0].is_contiguous()) for x in tensors
    )
    return list(tensors) if fits else [x.contiguous() for x in tensors]


def in_parts(values: Sequence[Tensor], parts: int) -> list[Tensor]:
    """Return room for `parts` sums of each value (parts, ...): the value itself if there is one part."""
    return [x.unsqueeze(0) if parts == 1 else x.new_empty(parts, *x.shape) for x in values]


def add_parts(values: Sequence[Tensor], sums: Sequence[Tensor]) -> None:
    """Write the totals of the sums, as of `in_parts`, to the values."""
    for value, parts in zip(values, sums, strict=True):
        if len(parts) > 1:
            torch.sum(parts, 0, out=value)


def contiguous(**tensors: Tensor | None) -> dict[str, Tensor | None]:
    """Return the tensors, each contiguous. Keep the result while its pointers are in use."""
    return {name: None if tensor is None else tensor.contiguous() for name, tensor in tensors.items()}
