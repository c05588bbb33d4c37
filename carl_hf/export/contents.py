"""Whether a file of an export is what its name says: texts, pictures and graphs."""

from pathlib import Path
from typing import BinaryIO

_GRAPH = 7  # the field of an ONNX model


def check_content(path: Path) -> None:
    """Raises a ValueError for text that is not UTF-8, a picture that is no whole PNG file, a graph that is no whole
    ONNX file, and an empty vocabulary."""
    if path.suffix == ".png":
        picture = path.read_bytes()
        if not (picture.startswith(b"\x89PNG\r\n\x1a\n") and picture[-8:-4] == b"IEND"):
            raise ValueError("no whole PNG file")
    elif path.suffix == ".onnx":
        with path.open("rb") as graph:
            if _GRAPH not in _protobuf_fields(graph, path.stat().st_size):
                raise ValueError("no ONNX file with a graph")
    elif path.suffix == ".model":
        if path.stat().st_size == 0:
            raise ValueError("it is empty")
    else:
        path.read_text(encoding="utf-8")


def _protobuf_fields(file: BinaryIO, size: int) -> set[int]:
    """The numbers of a protobuf message's fields, whose contents are passed over; a ValueError unless they end where
    the file does."""

    def number() -> int:  # seven bits a byte, the last byte below 128
        found, shift, byte = 0, 0, 128
        while byte >= 128:
            if not (read := file.read(1)) or shift > 63:
                raise ValueError("it is cut short")
            byte = read[0]
            found, shift = found | (byte & 127) << shift, shift + 7
        return found

    fields = set()
    while file.tell() < size:
        field, kind = divmod(number(), 8)
        fields.add(field)
        if kind == 0:
            number()
        elif kind in (1, 2, 5):
            file.seek(number() if kind == 2 else {1: 8, 5: 4}[kind], 1)
        else:
            raise ValueError("no protobuf")
    if file.tell() != size:
        raise ValueError("it is cut short")
    return fields
