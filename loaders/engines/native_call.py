"""Compiled code that calls C functions by their address, and looks at memory by its address.

An address, not a symbol: so the compiled code can be kept on disk, and tests can put functions of their own
in the place of a driver's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import llvmlite.ir as ir
import numba
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

carray: Final[Any] = numba.carray  # type: ignore[attr-defined] # it is documented


def _pointer_to(kind: Any) -> Callable[[Any, Any], Any]:
    def typing(typingctx: Any, address: Any) -> Any:
        signature = types.CPointer(kind)(types.int64)

        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return builder.inttoptr(args[0], context.get_value_type(sig.return_type))

        return signature, generate

    return typing


def _caller_of(kind: Any, bits: int) -> Callable[[Any, Any, Any], Any]:
    def typing(typingctx: Any, address: Any, arguments: Any) -> Any:
        signature = kind(types.int64, arguments)

        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            values = cgutils.unpack_tuple(builder, args[1])
            function = ir.FunctionType(ir.IntType(bits), [ir.IntType(64)] * len(values))
            return builder.call(builder.inttoptr(args[0], function.as_pointer()), values)

        return signature, generate

    return typing


words_at: Final[Any] = intrinsic(_pointer_to(types.int64))
"""A pointer to int64 from an address."""
halves_at: Final[Any] = intrinsic(_pointer_to(types.int32))
"""A pointer to int32 from an address."""
call_int: Final[Any] = intrinsic(_caller_of(types.int32, 32))
"""Calls the C function at an address with a tuple of int64; the int that it returns."""
call_long: Final[Any] = intrinsic(_caller_of(types.int64, 64))
"""As call_int, for functions that return 64 bits."""
