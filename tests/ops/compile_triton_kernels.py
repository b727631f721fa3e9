"""Compile every Triton kernel for an H100's architecture, which needs no GPU, and print its name."""

from triton import compile as compile_kernel
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from seqrec.ops.causal_conv1d import triton_kernels as conv_kernels
from seqrec.ops.causal_conv1d import triton_launch as conv
from seqrec.ops.selective_scan import triton_kernels as scan_kernels
from seqrec.ops.selective_scan import triton_launch as scan

FLAGS = ("valid", "start", "cuts")
PLACES = ("order", "counts", "starts")
INTEGERS = ("length", "channels", "states", "rows", "runs", "run_events", "run_chunks", "chunks", "blocks")
INTEGERS += ("row_stride", "event_stride")
CONSTANTS = {"SOFTPLUS": True, "REVERSE": True, "CHUNK": scan.CHUNK, "GROUP": scan.GROUP, "BLOCK": 128}
CONSTANTS |= {"SILU": True, "BLOCK_L": conv.BLOCK_L}


def compile_for_gpu(kernel, absent, warps=1, **blocks):
    constants = {**CONSTANTS, **blocks, **dict.fromkeys(absent)}
    signature, values = {}, {}
    for place, parameter in enumerate(kernel.arg_names):
        if parameter in constants:
            signature[parameter] = "constexpr"
            values[(place,)] = constants[parameter]
        else:
            pointer = "*u8" if parameter in FLAGS else "*i64" if parameter in PLACES else "*fp32"
            signature[parameter] = "i32" if parameter in INTEGERS else pointer
    source = ASTSource(kernel, signature, values)
    compile_kernel(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})


for name in ("run_ends", "run_begins", "carry", "outputs", "gradients"):
    compile_for_gpu(getattr(scan_kernels, name), (), BLOCK_D=32, BLOCK_N=32)
    # Integers that are 1 are constants to Triton.
    absent = ("D", "z", "bias", "begins", "dafter", *FLAGS, *(["kept"] if name == "outputs" else []))
    absent = ("state", *FLAGS) if name == "carry" else absent
    compile_for_gpu(getattr(scan_kernels, name), absent, BLOCK_D=1, BLOCK_N=1, channels=1, states=1)
    print(name)
for name in ("conv_outputs", "conv_gradients"):
    blocks = {"warps": conv.WARPS, "BLOCK_D": conv.BLOCK_D}
    compile_for_gpu(getattr(conv_kernels, name), (), **blocks, TAPS=4, KEPT=4)
    absent = ("bias", "state", "dlast", *PLACES)
    compile_for_gpu(getattr(conv_kernels, name), absent, **blocks, TAPS=1, KEPT=1, channels=1, event_stride=1)
    print(name)
