"""Files and directories that are written whole or not at all, and are on the disk once they have their name."""

import contextlib
import os
import shutil
from pathlib import Path

_UMASK = os.umask(0)  # it can be read only by setting it
os.umask(_UMASK)


@contextlib.contextmanager
def whole(path, shared=False):
    """A path beside this one to write a file to; synced, it takes this one's place.

    shared: other processes may be writing this one too.
    """
    path = Path(path)
    part = path.with_name(f"{path.name}.{os.getpid()}.part" if shared else f"{path.name}.part")
    try:
        yield part
        _finish(part)
        os.replace(part, path)
        sync(path.parent)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_directory(path):
    """A directory beside this one to write files to; they are synced, then it takes this one's place."""
    path = Path(path)
    part = path.with_name(f"{path.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # of a run that was killed
    part.mkdir(parents=True)
    try:
        yield part
        for file in part.iterdir():
            _finish(file)
        sync(part)
        if path.exists():
            shutil.rmtree(path)
        os.rename(part, path)
        sync(path.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextlib.contextmanager
def alone(path, name):
    """This process alone has a directory until then, or until it dies; ValueError, which calls it `name`, else."""
    import fcntl  # which Windows has not

    handle = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"{name} must be in use by no other process, got {str(path)!r}") from None
        yield
    finally:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_UN)  # of the handles of forked processes too
        os.close(handle)


def _finish(path):
    """On the disk, with the rights of any new file: safetensors makes its own readable to the owner alone."""
    os.chmod(path, 0o666 & ~_UMASK)
    sync(path)


def sync(path):
    """Asks the disk to keep a file's bytes, or a directory's names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
