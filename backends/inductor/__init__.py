"""The Inductor backend."""

from dit_compile.backends.inductor.backend import Inductor

__all__ = ["Inductor"]
