"""C declarations in Python: an annotation carries the ctypes type, type checkers see what a caller gives and gets."""

# not `from __future__ import annotations`, here and in the modules of the headers: their annotations are evaluated

import ctypes
import functools
from collections.abc import Callable
from ctypes import POINTER, Structure
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec, TypeAlias, TypeVar, get_args

from halfv_cpp import library

if TYPE_CHECKING:
    from ctypes import Array, _CArgObject, _CDataType, _Pointer

    C = TypeVar("C", bound=_CDataType)
    # what ctypes takes for a pointer: one, an array, byref(), the thing itself, or nothing
    To: TypeAlias = _Pointer[C] | Array[C] | _CArgObject | C | None

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S", bound=type[Structure])

Bool = Annotated[bool, ctypes.c_bool]
Int = Annotated[int, ctypes.c_int]  # enums too
Int32 = Annotated[int, ctypes.c_int32]
Int64 = Annotated[int, ctypes.c_int64]
UInt32 = Annotated[int, ctypes.c_uint32]
UInt64 = Annotated[int, ctypes.c_uint64]
Size = Annotated[int, ctypes.c_size_t]
Float = Annotated[float, ctypes.c_float]
Double = Annotated[float, ctypes.c_double]

# a pointer to what only the library looks into
Handle = Annotated[int, ctypes.c_void_p]
MaybeHandle = Annotated[int | None, ctypes.c_void_p]
Address = Annotated[Any, ctypes.c_void_p]  # of anything
Handles = Annotated["Array[Any]", POINTER(ctypes.c_void_p)]

Text = Annotated[bytes, ctypes.c_char_p]
MaybeText = Annotated[bytes | None, ctypes.c_char_p]
Buffer = Annotated["Array[ctypes.c_char] | bytes | None", ctypes.c_char_p]

# parameters
Int32s = Annotated["To[ctypes.c_int32]", POINTER(ctypes.c_int32)]
UInt8s = Annotated["To[ctypes.c_uint8]", POINTER(ctypes.c_uint8)]
Sizes = Annotated["To[ctypes.c_size_t]", POINTER(ctypes.c_size_t)]
Floats = Annotated["To[ctypes.c_float]", POINTER(ctypes.c_float)]
UInt64s = Annotated["To[ctypes.c_uint64]", POINTER(ctypes.c_uint64)]
Doubles = Annotated["To[ctypes.c_double]", POINTER(ctypes.c_double)]

# fields
Int8Field = Annotated[Any, POINTER(ctypes.c_int8)]
Int32Field = Annotated[Any, POINTER(ctypes.c_int32)]
FloatField = Annotated[Any, POINTER(ctypes.c_float)]

# results; false where the library gives null
Int32Pointer = Annotated["_Pointer[ctypes.c_int32]", POINTER(ctypes.c_int32)]
FloatPointer = Annotated["_Pointer[ctypes.c_float]", POINTER(ctypes.c_float)]


def c_type(annotation: Any) -> Any:
    """The ctypes type of an annotation: that of an alias above, a Structure itself, None for void."""
    return get_args(annotation)[1] if hasattr(annotation, "__metadata__") else annotation


def signature(declaration: Callable[..., Any]) -> tuple[Any, list[Any]]:
    """The result and argument types of a declaration."""
    types = {name: c_type(annotation) for name, annotation in declaration.__annotations__.items()}
    return types.pop("return"), list(types.values())


def functions_of(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator that makes declarations callable; the library is loaded at the first call."""

    def function(declaration: Callable[P, R]) -> Callable[P, R]:
        @functools.cache
        def bound() -> Callable[..., R]:
            found: Any = library.symbol(name, declaration.__name__)
            found.restype, found.argtypes = signature(declaration)
            return found  # type: ignore[no-any-return]

        @functools.wraps(declaration)
        def call(*arguments: P.args, **_: P.kwargs) -> R:
            return bound()(*arguments)

        return call

    return function


def structure(declaration: S) -> S:
    """A decorator that gives a Structure the fields that it is annotated with."""
    declaration._fields_ = tuple((name, c_type(kind)) for name, kind in declaration.__annotations__.items())
    return declaration
