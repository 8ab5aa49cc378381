"""Thumbnails: small pictures of the data, drawn again so that nothing of the original file is in a page."""

from __future__ import annotations

import base64
from io import BytesIO
from typing import Any

_SIDE = 160
_MOST_BYTES = 48_000
ADDRESS = "data:image/jpeg;base64,"


def thumbnail(image: Any) -> str:
    """A picture of ``PIL`` as a JPEG of at most 160 pixels a side, as a ``data:`` address; empty for anything else."""
    if not all(hasattr(image, name) for name in ("convert", "resize", "size")):
        return ""
    width, height = image.size
    scale = min(1.0, _SIDE / max(width, height, 1))
    drawn, out = image.convert("RGB").resize((max(int(width * scale), 1), max(int(height * scale), 1))), BytesIO()
    drawn.save(out, "JPEG", quality=75)
    data = out.getvalue()
    return ADDRESS + base64.b64encode(data).decode() if len(data) <= _MOST_BYTES else ""
