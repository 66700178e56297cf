"""A sheet of pictures: one row a way of sampling, one column an image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from dit_compile.files import replaced
from dit_compile.optional import require

_SCALE = 8
_GAP = 6
_LABEL_WIDTH = 190
_INK, _PAPER = (20, 20, 20), (255, 255, 255)


def save_sheet(path: Path, rows: Sequence[tuple[str, torch.Tensor]]) -> None:
    """Write a PNG.

    Args:
        path: the file; its folder is made.
        rows: a label and images ``[N, 1, H, W]`` in [-1, 1] (1 is ink) for each row.

    Raises:
        MissingDependencyError: pillow is not installed.
    """
    image_module, draw_module = (require(name, "demo") for name in ("PIL.Image", "PIL.ImageDraw"))
    count, _, height, width = rows[0][1].shape
    cell_w, cell_h = width * _SCALE + _GAP, height * _SCALE + _GAP
    sheet = image_module.new("RGB", (_LABEL_WIDTH + count * cell_w, len(rows) * cell_h), _PAPER)
    draw = draw_module.Draw(sheet)
    for row, (label, images) in enumerate(rows):
        top = row * cell_h + _GAP // 2
        draw.text((8, top + cell_h // 2 - 8), label, fill=_INK)
        grey = ((1 - images[:, 0].clamp(-1, 1)) * 127.5).round().to(torch.uint8).cpu().numpy()
        for column in range(count):
            tile = image_module.fromarray(grey[column]).resize(
                (width * _SCALE, height * _SCALE), image_module.Resampling.NEAREST
            )
            sheet.paste(tile, (_LABEL_WIDTH + column * cell_w, top))
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(path) as draft:
        sheet.save(draft)
