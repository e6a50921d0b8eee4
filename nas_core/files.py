"""Files that are either whole or not there; imports no other part of the package, nor PyTorch."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import threading
from pathlib import Path


def write_atomic(path: str | Path, content: str | bytes | memoryview) -> None:
    """Write text (UTF-8) or bytes to `path`; a crash leaves the old file or the new one.

    The bytes go to a neighbouring file, are forced to disk, and then take the name in one step.
    Neighbours that a killed process of this machine left behind are removed.

    Raises:
        OSError: when the disk is full or the folder read-only; an earlier file is unchanged.
    """
    path = Path(path)
    data = content.encode("utf-8") if isinstance(content, str) else content
    machine = re.sub(r"[^\w-]", "_", platform.node())
    partial = path.with_name(f".{path.name}.{machine}.{os.getpid()}.{threading.get_ident():x}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f".{_escape(path.name)}.{machine}.*.tmp"):
            pid = left.name.split(".")[-3]
            if pid.isdigit() and not _is_running(int(pid)):
                left.unlink(missing_ok=True)
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        if os.name == "posix":  # the new name itself must survive a power failure
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as error:
        raise OSError(
            error.errno,
            f"{error.strerror}: {len(data):,} bytes could not be written, an earlier file of this "
            "name is unchanged",
            str(path),
        ) from error
    finally:
        with contextlib.suppress(OSError):  # a read-only folder is reported above
            partial.unlink(missing_ok=True)


def _escape(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


def _is_running(pid: int) -> bool:
    if os.name != "posix" or pid == os.getpid():
        return True  # elsewhere there is no harmless way to ask
    try:
        os.kill(pid, 0)
    except OSError as error:
        return not isinstance(error, ProcessLookupError)
    return True
