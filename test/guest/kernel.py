"""Debian's cloud kernel for the QEMU guests: fetched with apt, unpacked without root, kept in build/guest.

`python3 test/guest/kernel.py` fetches it ahead of the tests and prints where it is.
"""

import os
import pathlib
import re
import subprocess
import sys
import tempfile

from common import CACHE, GuestError, Missing, program, run

META_PACKAGE = 'linux-image-cloud-amd64'  # depends on the current kernel's package, which carries a version


class Kernel:
    """An unpacked kernel package: `image` (vmlinuz), `release` (uname -r) and its modules."""

    def __init__(self, root):
        self.root = root
        self.image = next((root / 'boot').glob('vmlinuz-*'))
        self.release = self.image.name.removeprefix('vmlinuz-')
        self._modules = root / 'lib' / 'modules' / self.release

    def module(self, name):
        """The module's file; None if it is built into this kernel."""
        for path in self._modules.rglob(f'{name}.ko*'):
            if path.suffix != '.ko':
                raise GuestError(f'{path} is compressed: teach test/guest/initramfs.py to unpack it')
            return path
        if f'/{name}.ko' in (self._modules / 'modules.builtin').read_text():
            return None
        raise GuestError(f'kernel {self.release} has no module {name}, neither built in nor in {self._modules}')


def kernel():
    """The cached kernel; fetched at first use (Missing if apt cannot). Delete build/guest/kernel for a newer one."""
    cache = CACHE / 'kernel'
    if not cache.is_dir():
        _fetch(cache)
    return Kernel(cache)


def _fetch(cache):
    CACHE.mkdir(parents=True, exist_ok=True)
    # Unpacked beside the cache and renamed at the end: an interrupted run leaves no half kernel.
    with tempfile.TemporaryDirectory(prefix='kernel-', dir=CACHE) as work:
        archive = _download(work)
        unpacked = pathlib.Path(work) / 'root'
        run([program('dpkg-deb', 'dpkg'), '-x', archive, unpacked])
        try:
            unpacked.rename(cache)
        except OSError:
            if not cache.is_dir():  # else another process was faster: its copy is as good
                raise


def _download(directory):
    """Fetches the package into `directory`; refreshes apt's lists when they are missing or too old, if it may."""
    for attempt in ('with the lists as they are', 'after an update'):
        package = _dependency()
        if package:
            # The sandbox user _apt may not enter the directory; as root, apt would warn about it.
            command = [program('apt-get', 'apt'), '-q', '-o', 'APT::Sandbox::User=root', 'download', package]
            done = subprocess.run(command, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                  text=True, check=False)
            found = list(pathlib.Path(directory).glob('*.deb'))
            if done.returncode == 0 and found:
                return found[0]
            problem = f'`{" ".join(command)}` failed:\n{done.stdout}'
        else:
            problem = f'apt knows no package {META_PACKAGE}'
        if os.geteuid() != 0 or attempt == 'after an update':
            break
        print(f'{problem}: running apt-get update ...', flush=True)
        run([program('apt-get', 'apt'), '-q', 'update'])
    raise Missing(f'{problem}\nThe guests need Debian\'s cloud kernel. Run `apt-get update` as root on a Debian 12 '
                     'with network access, then try again.')


def _dependency():
    shown = subprocess.run([program('apt-cache', 'apt'), 'depends', META_PACKAGE], stdout=subprocess.PIPE,
                           stderr=subprocess.DEVNULL, text=True, check=False)
    found = re.search(r'Depends: (linux-image-\S+)', shown.stdout)
    return found and found.group(1)


if __name__ == '__main__':
    try:
        print(kernel().image)
    except (GuestError, Missing) as error:
        sys.exit(f'kernel.py: {error}')
