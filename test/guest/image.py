"""The initramfs of the QEMU guests: busybox, the scenarios, the drivers and real disk tools of this host.

And root_directory(): what a root file system on a disk, which the initramfs hands over to, is made of.
"""

import pathlib
import shutil

from common import CACHE, HERE, program
from initramfs import Initramfs
from kernel import kernel

# In loading order; a module that is built into the kernel is left out.
MODULES = ['crc16', 'mbcache', 'crc32c_generic', 'jbd2', 'ext4', 'virtio_ring', 'virtio', 'virtio_pci_legacy_dev',
           'virtio_pci_modern_dev', 'virtio_pci', 'virtio_mmio', 'virtio_blk']

# What busybox lacks, or has without what the scenarios use: ext4, sfdisk, blkdiscard -z.
TOOLS = {'mke2fs': 'e2fsprogs', 'e2fsck': 'e2fsprogs', 'sfdisk': 'fdisk', 'blkdiscard': 'util-linux'}

SCRIPTS = HERE / 'busybox'


def busybox_image():
    """(kernel image, initramfs), both paths; built when one of its inputs is newer than what exists."""
    linux = kernel()
    busybox = program('busybox', 'busybox-static')
    tools = {name: program(name, package) for name, package in TOOLS.items()}
    target = CACHE / 'qemu-initrd.cpio'
    inputs = [busybox, *tools.values(), linux.image, *SCRIPTS.iterdir(), *HERE.glob('*.py')]
    newest = max(pathlib.Path(path).stat().st_mtime for path in inputs)
    if not target.exists() or target.stat().st_mtime <= newest:
        _build(target, linux, busybox, tools)
    return linux.image, target


def root_directory(directory):
    """Fills a directory with the root file system of a guest: busybox, the same init and the scenarios. A few MiB."""
    directory = pathlib.Path(directory)
    directory.chmod(0o755)  # a temporary one is its owner's only, and its mode becomes that of /
    for name in ('bin', 'dev', 'etc', 'mnt', 'proc', 'run', 'sys', 'tmp'):
        (directory / name).mkdir()
    shutil.copy(program('busybox', 'busybox-static'), directory / 'bin/busybox')
    (directory / 'bin/sh').symlink_to('busybox')
    shutil.copy(SCRIPTS / 'scenarios.sh', directory)
    shutil.copy(SCRIPTS / 'init', directory)
    for name in ('bin/busybox', 'init'):
        (directory / name).chmod(0o755)


def _build(target, linux, busybox, tools):
    image = Initramfs()
    image.file('init', (SCRIPTS / 'init').read_bytes(), 0o755)
    image.file('scenarios.sh', (SCRIPTS / 'scenarios.sh').read_bytes())
    image.program('bin/busybox', busybox)
    image.link('bin/sh', 'busybox')
    for name, path in tools.items():
        image.program(f'sbin/{name}', path)
    image.link('sbin/mkfs.ext4', 'mke2fs')  # mke2fs takes the file system's kind from its own name
    image.file('etc/mke2fs.conf', pathlib.Path('/etc/mke2fs.conf').read_bytes())
    order = [name for name in MODULES if linux.module(name)]
    for name in order:
        image.file(f'modules/{name}.ko', linux.module(name).read_bytes())
    image.file('modules/order', '\n'.join(f'{name}.ko' for name in order).encode())
    image.write(target)
