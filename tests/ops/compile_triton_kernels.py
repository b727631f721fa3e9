"""Compile every kernel of the Triton scan for an H100's architecture, which needs no GPU, and print its name."""

from triton import compile as compile_kernel
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from seqrec.ops.selective_scan import triton_launch as launch

FLAGS = ("valid", "start", "cuts")
INTEGERS = ("length", "channels", "states", "rows", "runs", "run_events", "run_chunks", "chunks")
CONSTANTS = {"SOFTPLUS": True, "REVERSE": True, "CHUNK": launch.CHUNK, "GROUP": launch.GROUP, "BLOCK": 128}


def compile_for_gpu(name, absent, **blocks):
    kernel = getattr(launch, name)
    constants = {**CONSTANTS, **blocks, **dict.fromkeys(absent)}
    signature, values = {}, {}
    for place, parameter in enumerate(kernel.arg_names):
        if parameter in constants:
            signature[parameter] = "constexpr"
            values[(place,)] = constants[parameter]
        else:
            pointer = "*u8" if parameter in FLAGS else "*fp32"
            signature[parameter] = "i32" if parameter in INTEGERS else pointer
    source = ASTSource(kernel, signature, values)
    compile_kernel(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 1})


for name in ("run_ends", "run_begins", "carry", "outputs", "gradients"):
    compile_for_gpu(name, (), BLOCK_D=32, BLOCK_N=32)
    # Integers that are 1 are constants to Triton.
    absent = ("D", "z", "bias", *FLAGS, *(["kept"] if name == "outputs" else []))
    compile_for_gpu(name, absent, BLOCK_D=1, BLOCK_N=1, channels=1, states=1)
    print(name)
