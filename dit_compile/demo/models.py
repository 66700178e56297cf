"""The bundled models, by name."""

from __future__ import annotations

from collections.abc import Mapping

from dit_compile.demo.bundled import BundledModel
from dit_compile.demo.dit import DigitsDiT
from dit_compile.demo.flow import DigitsFlow

BUNDLED: Mapping[str, BundledModel] = {model.name: model for model in (DigitsDiT(), DigitsFlow())}
