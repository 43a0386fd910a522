"""The host's own look at an image that a guest wrote: an opinion that no cache of the guest can colour.

No mounting (that would take root): e2fsprogs reads the partition inside the image at its offset.
"""

import hashlib
import pathlib
import struct
import tempfile

from common import GuestError, program, run


def verify_ext4(image, sums=None):
    """Checks the first partition's file system and each file in its SHA256SUMS; returns the number of files.

    sums: the sha256 of SHA256SUMS itself as the guest reported it.
    """
    partition = f'{image}?offset={_first_partition_offset(image)}'
    run([program('e2fsck', 'e2fsprogs'), '-f', '-n', partition])
    listing = _read_files(partition, ['SHA256SUMS'])['SHA256SUMS']
    if sums and hashlib.sha256(listing).hexdigest() != sums:
        raise GuestError(f'{image}: the host reads another SHA256SUMS than the guest wrote')
    wanted = dict(reversed(line.split(maxsplit=1)) for line in listing.decode().splitlines())
    for name, data in _read_files(partition, list(wanted)).items():
        if hashlib.sha256(data).hexdigest() != wanted[name]:
            raise GuestError(f'{image}: the host reads other data in {name} than the guest wrote')
    return len(wanted)


def _first_partition_offset(image):
    with open(image, 'rb') as file:
        record = file.read(512)
    if record[510:512] != b'\x55\xaa':
        raise GuestError(f'{image}: no partition table, although the guest wrote one')
    # Entry 0 of the DOS label stands at byte 446, its first sector 8 bytes in.
    return struct.unpack_from('<I', record, 446 + 8)[0] * 512


def _read_files(partition, names):
    """{name: contents}. debugfs reports a missing file in words only: then its output file is missing."""
    with tempfile.TemporaryDirectory(prefix='sluice-dump-') as directory:
        target = pathlib.Path(directory)
        commands = ''.join(f'dump /{name} {target / name}\n' for name in names)
        (target / 'commands').write_text(commands)
        output = run([program('debugfs', 'e2fsprogs'), '-f', target / 'commands', partition])
        missing = [name for name in names if not (target / name).exists()]
        if missing:
            raise GuestError(f'{partition}: debugfs finds no {", ".join(missing)}:\n{output}')
        return {name: (target / name).read_bytes() for name in names}
