"""Pickles that would do harm: each calls something, or asks for more than it brings."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_CALLS = """
os/system posix/system os/mkdir posix/mkdir os/rmdir os/remove os/popen os/putenv os/execl
subprocess/Popen subprocess/run subprocess/check_output pty/spawn shutil/rmtree builtins/exec
builtins/eval builtins/open builtins/__import__ builtins/getattr builtins/compile
__builtin__/eval __builtin__/execfile runpy/run_path runpy/_run_code importlib/import_module
timeit/timeit code/interact pathlib/Path pathlib/Path.touch webbrowser/open
urllib.request/urlopen socket/create_connection ctypes/CDLL pickle/loads _pickle/loads
marshal/loads types/FunctionType types/CodeType functools/partial functools/reduce
operator/attrgetter operator/methodcaller itertools/starmap bdb/Bdb cProfile/run pip/main
logging.config/_resolve numpy/load numpy/fromfile numpy.testing._private.utils/runstring
torch/load torch.hub/load torch.jit/load torch.serialization/load
torch.utils._config_module/load_config torch._inductor.codecache/compile_file
torch.fx.experimental.symbolic_shapes/ShapeEnv.evaluate_guards_expression
torch.distributed.rpc.internal/_run_function torch._dynamo.guards/GuardBuilder.get
torch.utils.bottleneck.__main__/run_cprofile collections/namedtuple kilolayer.cli.command_line/run
kilolayer.__main__/main
"""
Call = tuple[str, str]
CALLS: tuple[Call, ...] = tuple(tuple(call.split("/")) for call in _CALLS.split())
"""What strangers' pickles have been seen to call, and what else could do something here."""


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def calling(call: Call, argument: str, how: str = "REDUCE") -> bytes:
    """A pickle that calls it with one string; nothing need be importable to write it."""
    module, name = call
    named = f"c{module}\n{name}\n".encode()
    stacked = text(module) + text(name) + b"\x93"
    return b"\x80\x04" + {
        "REDUCE": named + b"(" + text(argument) + b"tR",
        "STACK_GLOBAL": stacked + b"(" + text(argument) + b"tR",
        "NEWOBJ": named + b"(" + text(argument) + b"t\x81",
        "OBJ": b"(" + named + text(argument) + b"o",
        "INST": b"(" + text(argument) + f"i{module}\n{name}\n".encode(),
        "BUILD": named + b")R}" + text("__setstate__") + named + b"sb",
        "PERSID": named + b"0Pstorage\n",
    }[how] + b"."  # fmt: skip


HOWS = ("REDUCE", "STACK_GLOBAL", "NEWOBJ", "OBJ", "INST", "BUILD", "PERSID")


def within(body: bytes) -> bytes:
    """The value of a pickle under a key of a dictionary, as it would hide in a checkpoint."""
    return b"\x80\x04}" + text("weight") + body[2:-1] + b"s."


def zipped(data: bytes, files: dict[str, bytes] | None = None, compress: int = zipfile.ZIP_STORED) -> bytes:
    """What torch.save writes, around this pickle."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compress) as archive:
        archive.writestr("archive/data.pkl", data)
        for name, content in {"version": b"3\n", "byteorder": b"little", **(files or {})}.items():
            archive.writestr(f"archive/{name}", content)
    return file.getvalue()


def legacy(data: bytes, at: int = 3, rest: bytes = b"") -> bytes:
    """What torch.save wrote before 1.6, with this pickle in the given place of five."""
    system = {"protocol_version": PROTOCOL, "little_endian": True, "type_sizes": {}}
    parts = [pickle.dumps(part, 2) for part in (MAGIC, PROTOCOL, system, {}, [])]
    parts[at] = data
    return b"".join(parts) + rest


CONTAINERS: dict[str, Callable[[bytes], bytes]] = {
    "plain": lambda data: data,
    "zip": zipped,
    "zip, compressed": lambda data: zipped(data, compress=zipfile.ZIP_DEFLATED),
    "legacy": legacy,
    "legacy, the system's place": lambda data: legacy(data, 2),
    "legacy, the keys' place": lambda data: legacy(data, 4),
    "after a safetensors header": lambda data: struct.pack("<Q", 2) + b"{}" + data,
}


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def storage(elements: int, *, old: bool, kind: str = "FloatStorage") -> bytes:
    """A pickle of one tensor on a storage of so many elements."""
    count = b"J" + struct.pack("<i", elements) if elements < 2**31 else long(elements)
    name = b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text("0") + text("cpu") + count
    stored = name + (b"N" if old else b"") + b"tQ"
    size = b"(" + count + b"t"
    ending = b"\x89ccollections\nOrderedDict\n)R"
    made = b"ctorch._utils\n_rebuild_tensor_v2\n(" + stored + b"K\x00" + size + b"(K\x01t" + ending + b"tR"
    return b"\x80\x02}" + text("w") + made + b"s."


def long(number: int) -> bytes:
    raw = number.to_bytes((number.bit_length() + 8) // 8, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def anything(value: Any) -> bytes:
    return pickle.dumps(value, 2)
