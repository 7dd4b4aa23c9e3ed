"""Dtypes of fwstore by the names that other formats give them.

Invariant: a name that is not listed is refused; nothing is guessed.
"""

from __future__ import annotations

from fwstore import Unsupported

SAFETENSORS = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
}
TO_SAFETENSORS = {name: code for code, name in SAFETENSORS.items()}

TORCH_STORAGES = {
    "BoolStorage": "bool",
    "ByteStorage": "uint8",
    "CharStorage": "int8",
    "ShortStorage": "int16",
    "IntStorage": "int32",
    "LongStorage": "int64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
}
TORCH_DTYPES = frozenset(
    {
        *TORCH_STORAGES.values(),
        "uint16",
        "uint32",
        "uint64",
        "complex32",
        "float8_e4m3fn",
        "float8_e4m3fnuz",
        "float8_e5m2",
        "float8_e5m2fnuz",
        "float8_e8m0fnu",
        "float4_e2m1fn_x2",
    }
)


def from_safetensors(code: object, name: str) -> str:
    """Return the dtype of a safetensors code.

    Raises:
        Unsupported: The code is unknown.
    """
    dtype = SAFETENSORS.get(code) if isinstance(code, str) else None
    if dtype is None:
        raise Unsupported(f"tensor {name[:200]!r} has the dtype {str(code)[:40]!r}, not known here")
    return dtype
