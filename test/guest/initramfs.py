"""Writes initramfs images: a cpio archive in the "newc" format, uncompressed, without root.

Python instead of cpio(1), because a program that is not root cannot make the device nodes which the
kernel wants before the guest's init has mounted anything; uncompressed, because unpacking costs more
under emulation than reading.
"""

import os
import pathlib
import re
import stat

from common import Missing, run


class Initramfs:
    """Collects files, then writes the archive. Parents are made as needed; a path given twice is kept once."""

    def __init__(self):
        self._archive = bytearray()
        self._paths = set()
        self.node('dev/console', 5, 1)
        self.node('dev/null', 1, 3)

    def directory(self, path):
        if path and path != '.' and path not in self._paths:
            self._entry(path, stat.S_IFDIR | 0o755)

    def file(self, path, data, mode=0o644):
        self._entry(path, stat.S_IFREG | mode, data)

    def link(self, path, target):
        self._entry(path, stat.S_IFLNK | 0o777, target.encode())

    def node(self, path, major, minor):
        self._entry(path, stat.S_IFCHR | 0o600, b'', major, minor)

    def program(self, path, source):
        """A program of the host at `path`, and at its own place each shared library that ldd names."""
        self.file(path, pathlib.Path(source).read_bytes(), 0o755)
        for library in shared_libraries(source):
            if library.lstrip('/') not in self._paths:
                self.file(library.lstrip('/'), pathlib.Path(library).read_bytes(), 0o755)

    def write(self, target):
        """Writes the archive; readers never see half a file."""
        archive, paths = bytes(self._archive), set(self._paths)
        self._entry('TRAILER!!!', 0)
        partial = pathlib.Path(f'{target}.partial.{os.getpid()}')
        partial.write_bytes(self._archive)
        partial.rename(target)
        self._archive, self._paths = bytearray(archive), paths

    def _entry(self, path, mode, data=b'', major=0, minor=0):
        if path in self._paths:
            return
        if mode:
            self.directory(os.path.dirname(path))
        self._paths.add(path)
        name = path.encode() + b'\0'
        # Field order of newc: ino mode uid gid nlink mtime filesize dev(2) rdev(2) namesize check.
        fields = (len(self._paths), mode, 0, 0, 1, 0, len(data), 0, 0, major, minor, len(name), 0)
        self._archive += b'070701' + b''.join(b'%08x' % field for field in fields)
        self._append_padded(name)
        self._append_padded(data)

    def _append_padded(self, data):
        self._archive += data
        self._archive += bytes(-len(self._archive) % 4)


def shared_libraries(source):
    """What the dynamic loader would load for `source`, with the loader itself; nothing for a static program."""
    text = pathlib.Path(source).read_bytes()[:4]
    if text != b'\x7fELF':
        raise Missing(f'{source} is not a program (ELF)')
    try:
        listing = run(['ldd', source], env={**os.environ, 'LC_ALL': 'C'})
    except Exception:  # ldd fails for static programs: "not a dynamic executable"
        return []
    return sorted(set(re.findall(r'(?:=> |^\s+)(/\S+) \(0x', listing, re.MULTILINE)))
