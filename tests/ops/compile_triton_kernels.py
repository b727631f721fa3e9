"""Compile every Triton kernel for an H100's architecture, which needs no GPU, and print its name."""

from triton import compile as compile_kernel
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from seqrec.ops import dropout_kernels
from seqrec.ops.causal_conv1d import triton_kernels as conv_kernels
from seqrec.ops.causal_conv1d import triton_launch as conv
from seqrec.ops.selective_scan import triton_kernels as scan_kernels
from seqrec.ops.selective_scan import triton_launch as scan
from seqrec.ops.ssd import triton_kernels as ssd_kernels

FLAGS = ("valid", "start", "cuts")
PLACES = ("order", "counts", "starts", "seed")
INTEGERS = ("length", "channels", "states", "rows", "runs", "run_events", "run_chunks", "chunks", "blocks")
INTEGERS += ("row_stride", "event_stride", "heads", "width", "groups", "size", "count", "threshold")
INTEGERS += tuple(f"{name}_{way}" for name in ("x", "delta", "B", "C", "z", "dy") for way in ("row", "event"))
CONSTANTS = {"SOFTPLUS": True, "REVERSE": True, "CHUNK": scan.CHUNK, "GROUP": scan.GROUP, "BLOCK": 128}
CONSTANTS |= {"SILU": True, "BLOCK_L": conv.BLOCK_L, "PRECISION": "tf32x3", "S": 16}


def compile_for_gpu(kernel, absent, warps=1, **blocks):
    constants = {**CONSTANTS, **blocks, **dict.fromkeys(absent)}
    signature, values = {}, {}
    for place, parameter in enumerate(kernel.arg_names):
        if parameter in constants:
            signature[parameter] = "constexpr"
            values[(place,)] = constants[parameter]
        else:
            pointer = "*u8" if parameter in FLAGS else "*i64" if parameter in PLACES else "*fp32"
            signature[parameter] = "i32" if parameter in INTEGERS else "fp32" if parameter == "scale" else pointer
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
LEFT_OUT = {
    "run_ends": (),
    "run_begins": (),
    "carry": ("first",),
    "outputs": ("begins", "kept"),
    "gradients": ("dafter",),
}
for name, absent in LEFT_OUT.items():
    compile_for_gpu(getattr(ssd_kernels, name), (), warps=4, BLOCK_P=16, BLOCK_N=16)
    absent += () if name == "carry" else ("D", "z", "bias", "valid", "start")
    compile_for_gpu(getattr(ssd_kernels, name), absent, BLOCK_P=16, BLOCK_N=16, groups=1, width=1, states=1)
    print("ssd", name)
compile_for_gpu(dropout_kernels.drop, (), BLOCK=2048)
print("drop")
