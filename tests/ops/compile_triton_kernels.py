"""Compile every Triton kernel for an H100's architecture, which needs no GPU, and print its name."""

from triton import compile as compile_kernel
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from seqrec.ops import cross_entropy_kernels, dropout_kernels
from seqrec.ops.block_sizes import TABLE
from seqrec.ops.causal_conv1d import triton_kernels as conv_kernels
from seqrec.ops.selective_scan import triton_kernels as scan_kernels
from seqrec.ops.selective_scan import triton_launch as scan
from seqrec.ops.ssd import triton_kernels as ssd_kernels

FLAGS = ("valid", "start", "cuts", "excluded")
PLACES = ("order", "counts", "starts", "seed", "own")
INTEGERS = ("length", "channels", "states", "rows", "runs", "run_events", "run_chunks", "chunks", "blocks")
INTEGERS += ("row_stride", "event_stride", "heads", "width", "groups", "size", "count", "threshold")
INTEGERS += tuple(f"{name}_{way}" for name in ("x", "delta", "B", "C", "z", "dy") for way in ("row", "event"))
INTEGERS += (
    "z_event",
    "weights_event",
    "state_stride",
    "vector_stride",
    "dvector_stride",
    "excluded_row",
    "events",
    "candidates",
    "part_blocks",
)
CONV = TABLE["causal_conv1d"][0].sizes
CONSTANTS = {"SOFTPLUS": True, "REVERSE": True, "CHUNK": scan.CHUNK, "GROUP": scan.GROUP, "BLOCK": 128}
CONSTANTS |= {"SILU": True, "BLOCK_L": CONV["events"], "PRECISION": "tf32x3", "S": 16}
# Inputs, and gradients of them, that may have 16 bits.
NARROW = ("u", "x", "delta", "B", "C", "z", "y", "dy", "out", "dout", "du", "dx", "ddelta", "dB", "dC", "dz")


def compile_for_gpu(kernel, absent, warps=1, narrow=False, types=(), **blocks):
    constants = {**CONSTANTS, **blocks, **dict.fromkeys(absent)}
    signature, values = {}, {}
    for place, parameter in enumerate(kernel.arg_names):
        if parameter in constants:
            signature[parameter] = "constexpr"
            values[(place,)] = constants[parameter]
        elif parameter in dict(types):
            signature[parameter] = dict(types)[parameter]
        else:
            pointer = "*u8" if parameter in FLAGS else "*i64" if parameter in PLACES else "*fp32"
            pointer = "*bf16" if narrow and parameter in NARROW else pointer
            signature[parameter] = "i32" if parameter in INTEGERS else "fp32" if parameter == "scale" else pointer
    source = ASTSource(kernel, signature, values)
    compile_kernel(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})


for name in ("run_ends", "run_begins", "carry", "outputs", "gradients"):
    compile_for_gpu(getattr(scan_kernels, name), (), BLOCK_D=32, BLOCK_N=32)
    # Integers that are 1 are constants to Triton.
    absent = ("D", "z", "bias", "begins", "dafter", *FLAGS, *(["kept"] if name == "outputs" else []))
    absent = ("state", *FLAGS) if name == "carry" else absent
    compile_for_gpu(getattr(scan_kernels, name), absent, narrow=True, BLOCK_D=1, BLOCK_N=1, channels=1, states=1)
    print(name)
for name in ("conv_outputs", "conv_gradients"):
    blocks = {"warps": CONV["warps"], "BLOCK_D": CONV["channels"]}
    compile_for_gpu(getattr(conv_kernels, name), (), **blocks, TAPS=4, KEPT=4)
    absent, one = ("bias", "state", "dlast", *PLACES), {"TAPS": 1, "KEPT": 1, "channels": 1, "event_stride": 1}
    compile_for_gpu(getattr(conv_kernels, name), absent, **blocks, **one, narrow=True)
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
    sizes = {"groups": 1, "width": 1, "states": 1}
    compile_for_gpu(getattr(ssd_kernels, name), absent, narrow=True, BLOCK_P=16, BLOCK_N=16, **sizes)
    print("ssd", name)
for name in ("log_sums", "of_candidates"):
    kernel, sizes = getattr(cross_entropy_kernels, name), {"M": 32, "C": 32, "D": 64, "width": 64}
    types = {**dict.fromkeys(("states", "vectors", "log_weights"), "*fp32"), "rows": "*i64"}
    compile_for_gpu(kernel, (), warps=4, types=types, **sizes, ONE_PART=True)
    absent = ("excluded", "rows", "log_weights", *(["dstates"] if name == "log_sums" else []))
    compile_for_gpu(kernel, absent, warps=4, types={"states": "*bf16", "vectors": "*bf16"}, **sizes, ONE_PART=False)
    print(name)
compile_for_gpu(dropout_kernels.drop, (), BLOCK=TABLE["dropout"][0].sizes["elements"])
print("drop")
