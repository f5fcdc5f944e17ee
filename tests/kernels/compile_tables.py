"""Compile every entry of the tables of tiles for a GPU that is not there: python compile_tables.py CAPABILITY.

Prints a JSON line a kernel: what it is and the shared memory that it takes. In a process of its own, since
Triton's interpreter, once chosen, stays.
"""

from __future__ import annotations

import json
import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from seqpope.kernels import flash
from seqpope.kernels.backward import pope_backward_keys, pope_backward_queries
from seqpope.kernels.forward import pope_forward

KERNELS = {
    "forward": pope_forward,
    "backward_keys": pope_backward_keys,
    "backward_queries": pope_backward_queries,
}
FP32 = {"LOGSUM", "ROW_DOTS", "COARSE", "FINE", "DELTA_PART"}
ABSENT = {"FIRST", "LAST", "OFFSETS", "LENGTHS", "SEED"}


def shared_memory(name: str, dim: int, dtype: str, tiles: flash.Tiles, capability: int) -> int:
    """Bytes that the kernel takes, compiled for inputs as a model has them."""
    kernel, problem = KERNELS[name], flash.Problem(*[None] * 7, 0, True, 1.0, 0.0)  # type: ignore[arg-type]
    options = flash._options(problem, dim, 1, tiles) | {"OVERLAP": capability >= 90}
    signature, constants, attributes = {}, {}, {}
    for place, parameter in enumerate(kernel.params):
        known = parameter.name
        if parameter.is_constexpr:
            signature[known], constants[known] = "constexpr", options[known]
        elif known in ABSENT:
            signature[known], constants[known] = "constexpr", None
        elif known.startswith("stride") and known.endswith("column"):
            signature[known], constants[known] = "constexpr", 1
        elif known.isupper():
            signature[known] = "*fp32" if known in FP32 else f"*{dtype}"
            attributes[(place,)] = [["tt.divisibility", 16]]
        elif known.startswith("stride"):
            signature[known] = "i32"
            attributes[(place,)] = [["tt.divisibility", 16]]
        else:
            signature[known] = "fp32" if known.endswith("scale") else "i32"
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(kernel.arg_names.index(known),): value for known, value in constants.items()},
        attrs=attributes,
    )
    chosen = {key: options[key] for key in ("num_warps", "num_stages", "maxnreg") if key in options}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=chosen)
    return compiled.metadata.shared


def main() -> None:
    capability = int(sys.argv[1])
    tables = [("bf16", dim, flash.SMALL[dim]) for dim in flash.SMALL if dim <= 128]
    tables += [("bf16", 256, flash._SMALL_WIDEST)]
    tables += [("fp32", dim, tiling) for dim, tiling in flash.SMALL.items()]
    if capability >= 90:
        tables += [("bf16", dim, tiling) for dim, tiling in flash.HOPPER.items()]
        tables += [("bf16", dim, tiling) for dim, tiling in flash.HOPPER_LONG.items()]
        tables += [("bf16", 256, flash._WIDEST)]
    for dtype, dim, tiling in tables:
        for name, tiles in tiling._asdict().items():
            shared = shared_memory(name, dim, dtype, tiles, capability)
            row = {"kernel": name, "dim": dim, "dtype": dtype, "tiles": tiles, "shared": shared}
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
