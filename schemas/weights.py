"""A model's weights as they lie in safetensors files: where each tensor is.

A file is eight bytes that say how long its header is, the header, which is JSON and
says of each tensor its type, shape and place, and the numbers, tensor after tensor. So
a tensor is a range of bytes, which can be read alone, of an object in a bucket too; and
a file can be written from its beginning to its end, its header first, once all shapes
are known. Nothing here knows torch.
"""

import fnmatch
import json
import math
import os
import socket
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from schemas import buckets, files
from schemas.errors import FusionError, SchemaError

INDEX = "model.safetensors.index.json"
ALONE = "model.safetensors"
PATTERN = "model*.safetensors"
METADATA = "__metadata__"
FINGERPRINT = "fusebeam"
"""Key in a file's metadata: the fingerprint of the work that wrote it."""

_TYPES = {
    8: ("F64", "I64", "U64"),
    4: ("F32", "I32", "U32"),
    2: ("BF16", "F16", "I16", "U16"),
    1: ("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0"),
}
ITEM_BYTES = {name: size for size, names in _TYPES.items() for name in names}
"""Bytes of one number, by the name of its type in a header."""

FLOATS = ("F64", "F32", "BF16", "F16")
"""Types of weights that can be computed with as they are."""

_LENGTH = struct.Struct("<Q")
_LONGEST_HEADER = 100_000_000  # as the format itself bounds it
_ALIGNED = 8
_SHOWN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a tensor lies.

    Attributes:
      file: name of its file.
      start: its first byte in the file.
      stop: the byte behind its last.
      dtype: the type of its numbers, as safetensors calls it.
      shape: its shape.
    """

    file: str
    start: int
    stop: int
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """The version of a file.

    Attributes:
      bytes: its size.
      content: what a bucket says of its content; None of a file on a disk.
      where: the machine, device and absolute path at which it was seen on a disk; None
        in a bucket, and where each machine has a copy of its own.
      version: what is known there of it: inode, and nanosecond of the last change.
    """

    bytes: int
    content: str | None = None
    where: str | None = None
    version: str | None = None

    def fits(self, other: "Stamp") -> bool:
        """Says whether two may be of one file; surely, at one place or in a bucket.

        Machines, and containers of one name, may have copies of their own, of which
        times say nothing.
        """
        if (self.bytes, self.content) != (other.bytes, other.content):
            return False
        return self.where != other.where or self.version == other.version


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What the header of a file says.

    Attributes:
      places: of its tensors, in the order of their bytes.
      metadata: what else it holds.
      stamp: the version of the file.
    """

    places: Mapping[str, Place]
    metadata: Mapping[str, str]
    stamp: Stamp


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """The tensors of a model.

    Attributes:
      places: of all tensors, by state-dict key, in the order of files and bytes.
      stamps: the version of each file, by name.
    """

    places: Mapping[str, Place]
    stamps: Mapping[str, Stamp]


def _stamp_of(path: str, file: Any) -> Stamp:
    """Returns the version of an open file."""
    details = getattr(file, "details", None)
    if isinstance(details, dict) and (content := buckets.content(details)):
        return Stamp(bytes=int(details["size"]), content=content)
    if (known := files.stamp(file)) is None:
        return Stamp(bytes=files.size(path))
    size, version = known
    _, plain = files.filesystem(path)
    device = os.fstat(file.fileno()).st_dev
    where = f"{socket.gethostname()} {device} {plain}"
    return Stamp(bytes=size, where=where, version=version)


def read_header(path: str) -> Header:
    """Reads the header of a file, and checks that all of it fits the file.

    Raises:
      SchemaError: if it is not a whole safetensors file; names it and the cure.
    """
    with files.open_input(path) as file:
        stamp = _stamp_of(path, file)
        try:
            (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
            if length > _LONGEST_HEADER:
                raise ValueError(f"its header would have {length} bytes")
            told = dict(json.loads(file.read(length)))
            metadata = {str(k): str(v) for k, v in told.pop(METADATA, {}).items()}
            found = {
                key: read_place(files.name_of(path), _LENGTH.size + length, key, entry)
                for key, entry in told.items()
            }
            stop = max((p.stop for p in found.values()), default=_LENGTH.size + length)
            if stop > (size := files.size(path)):
                raise ValueError(f"it should have {stop} bytes, it has {size}")
        except (
            struct.error,
            ValueError,
            TypeError,
            LookupError,
            AttributeError,
        ) as error:
            raise SchemaError(
                f"{path} must be a whole safetensors file, but its header cannot be"
                f" read ({error}); copy or fetch it again"
            ) from error
    order = sorted(found, key=lambda key: (found[key].start, key))
    return Header(
        places={key: found[key] for key in order}, metadata=metadata, stamp=stamp
    )


def read_place(file: str, offset: int, key: str, entry: Mapping[str, Any]) -> Place:
    """Reads what a header says of one tensor.

    Args:
      file: name of its file.
      offset: where the header of the file ends.
      key: of the tensor.
      entry: its entry: `dtype`, `shape` and `data_offsets`.

    Raises:
      ValueError: if the type is unknown, or the bytes are not of that shape.
    """
    dtype, shape = str(entry["dtype"]), tuple(int(n) for n in entry["shape"])
    start, stop = (offset + int(n) for n in entry["data_offsets"])
    if dtype not in ITEM_BYTES:
        raise ValueError(f"{key} is of the unknown type {dtype}")
    if stop - start != math.prod(shape) * ITEM_BYTES[dtype] or start < offset:
        raise ValueError(f"{key} has {stop - start} bytes for {dtype} {list(shape)}")
    return Place(file=file, start=start, stop=stop, dtype=dtype, shape=shape)


def read_weights(folder: str) -> Weights:
    """Reads the headers of all files of a model's weights.

    Where there is an index it says which files there are, and which tensors each holds.

    Raises:
      FileNotFoundError: if there are no such files.
      SchemaError: if one cannot be read, index and files do not agree, or there is a
        file beside them that is loaded whatever the index says.
    """
    index, names = _index(folder), file_names(folder)
    if ALONE not in names and files.exists(files.join(folder, ALONE)):
        raise SchemaError(
            f"{folder} must hold one model, but {ALONE} is one, which transformers"
            f" loads, and {INDEX} says that {some(names)} are another; remove {ALONE},"
            " or the index and its files"
        )
    headers = files.each(lambda name: read_header(files.join(folder, name)), names)
    places: dict[str, Place] = {}
    for name, header in zip(names, headers, strict=True):
        for key, place in header.places.items():
            if key in places:
                raise SchemaError(
                    f"{folder} must hold every tensor once, but {key} is in"
                    f" {places[key].file} and in {name}; remove the files that are not"
                    " of this model, or write the index that says which are"
                )
            places[key] = place
    if index is not None:
        _check_index(folder, index, places)
    return Weights(
        places=places,
        stamps={n: header.stamp for n, header in zip(names, headers, strict=True)},
    )


def file_names(folder: str) -> list[str]:
    """Lists the files of a model's weights: as its index does, or all called so.

    Raises:
      FileNotFoundError: if there are none.
      SchemaError: if the index cannot be read.
    """
    if (index := _index(folder)) is not None:
        names = sorted(set(index.values()))
    else:
        found = files.names(folder, ".safetensors")
        names = [name for name in found if fnmatch.fnmatchcase(name, PATTERN)]
    if not names:
        raise FileNotFoundError(
            f"{folder} must hold weights as {PATTERN}, it holds none; load it with"
            " transformers where you trust it, and save it with save_pretrained"
        )
    return names


def _index(folder: str) -> dict[str, str] | None:
    path = files.join(folder, INDEX)
    if not files.exists(path):
        return None
    try:
        return {str(k): str(v) for k, v in files.read_json(path)["weight_map"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise SchemaError(
            f"{path} must say in weight_map which file holds which tensor, it does not"
            f" ({error!r}); copy or fetch it again"
        ) from error


def _check_index(
    folder: str, index: Mapping[str, str], places: Mapping[str, Place]
) -> None:
    """Refuses an index that says other than the files."""
    found = {key: place.file for key, place in places.items()}
    odd = [k for k in sorted({*index, *found}) if index.get(k) != found.get(k)]
    if odd:
        raise SchemaError(
            f"{folder}/{INDEX} must name the file of every tensor and no others, but"
            f" {some(odd)} {'is' if len(odd) == 1 else 'are'} elsewhere or nowhere;"
            " copy or fetch index and files again, together"
        )


def some(names: Iterable[str]) -> str:
    """Writes the first of many names, and how many more there are.

    Example:
      >>> some(["a", "b", "c", "d", "e"])
      'a, b, c and 2 more'
    """
    listed = list(names)
    text = ", ".join(listed[:_SHOWN])
    more = len(listed) - _SHOWN
    return f"{text} and {more} more" if more > 0 else text


def read_bytes(folder: str, place: Place, stamp: Stamp) -> bytearray:
    """Reads the bytes of one tensor, and nothing else of its file.

    Args:
      folder: of the model.
      place: of the tensor.
      stamp: the version of its file, as `read_weights` found it.

    Raises:
      FusionError: if the file is another by now.
    """
    path = files.join(folder, place.file)
    with files.open_input(path) as file:
        check_version(path, file, stamp)
        file.seek(place.start)
        content = bytearray(place.stop - place.start)
        view, done = memoryview(content), 0
        while done < len(content):
            count = file.readinto(view[done:])
            if not count:
                raise SchemaError(
                    f"{path} must have {place.stop} bytes, it ends at"
                    f" {place.start + done}; copy or fetch it again"
                )
            done += count
    return content


def check_version(path: str, file: Any, stamp: Stamp) -> None:
    """Checks that an open file is of the version that the work was planned with.

    Raises:
      FusionError: if it is another.
    """
    if stamp.fits(now := _stamp_of(path, file)):
        return
    sizes = ""
    if stamp.bytes != now.bytes:
        sizes = f" ({stamp.bytes} and {now.bytes} bytes)"
    raise FusionError(
        f"{path} must be the file that the work was planned with, but has been"
        f" written anew or is another{sizes};"
        " let nobody write the model meanwhile, and every worker have the same"
        " at that place, and repeat the command"
    )


def plan_header(
    tensors: Sequence[tuple[str, str, tuple[int, ...]]], fingerprint: str
) -> bytes:
    """Lays out a file of tensors that follow each other, and writes its header.

    Args:
      tensors: key, type and shape of each, in order; the larger numbers first, so that
        every tensor is aligned to its own.
      fingerprint: of the work that writes it.

    Returns:
      What the file begins with; the tensors' bytes follow without gaps.
    """
    entries: dict[str, Any] = {METADATA: {"format": "pt", FINGERPRINT: fingerprint}}
    start = 0
    for key, dtype, shape in tensors:
        stop = start + math.prod(shape) * ITEM_BYTES[dtype]
        entries[key] = {
            "dtype": dtype,
            "shape": list(shape),
            "data_offsets": [start, stop],
        }
        start = stop
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNED)
    return _LENGTH.pack(len(text)) + text


def is_done(path: str, fingerprint: str, *, overwrite: bool = False) -> bool:
    """Says whether a file is there and was written by the work of this fingerprint.

    Raises:
      SchemaError: if other work wrote it, or it cannot be read, and `overwrite` is off.
    """
    if not files.exists(path):
        return False
    try:
        found = read_header(path).metadata.get(FINGERPRINT)
    except SchemaError:
        if overwrite:
            return False
        raise
    if found == fingerprint:
        return True
    if overwrite:
        return False
    raise SchemaError(
        f"{path} was made with other settings or inputs (fingerprint {found}, wanted"
        f" {fingerprint}); choose another folder, or pass --overwrite to make it anew"
    )
