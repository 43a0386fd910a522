#!/usr/bin/env python3
"""Images for virtual machines: read-only logical volumes, and clones of them, each of which a machine boots from.

usage: image.py [-s SOCKET] import --store STORE --name NAME SOURCE [OPTIONS]
       image.py [-s SOCKET] clone --image STORE/NAME --count COUNT [--prefix PREFIX] [--first NUMBER]
       image.py [-s SOCKET] list

import: SOURCE is
  a directory    a root file system, such as an unpacked container image: an ext4 file system is made of it
                 (mke2fs -d; owners and modes are those of its files: unpack it as root, or with fakeroot)
  a raw file     as it is
  qcow2, vmdk, vdi, vhd or vhdx    converted with qemu-img
Its data go to a new thin volume through the daemon, are read back and compared, and the volume becomes the snapshot
STORE/NAME. What is zero takes no space. There is no such image before all of it is there, and nothing is left of an
import that fails. Temporary files, as large as what is in the image, are made in $TMPDIR.

clone: makes PREFIX0, PREFIX1, ... in the image's store, all of them or none. Each is a volume of its own to write to.

import's options:
      --size SIZE                  of the volume, such as 20G (default: a file's own size; a directory's contents and
                                   some room)
      --fs KIND                    ext2, ext3 or ext4, for a directory (default: ext4)
      --format FORMAT              of a file; an image that came from strangers and is raw should be called so, as its
                                   first bytes may claim anything (default: told by its first bytes)
      --no-verify                  does not read it back
clone's options:
      --prefix PREFIX              default: the image's name and a dash
      --first NUMBER               of the first clone (default: 0)
options:
  -s, --socket SOCKET              default: $SLUICE_RPC_SOCKET, or /var/tmp/sluice.sock
  -h, --help                       this text

exit code: 0 done, 1 it failed, 2 wrong usage, 3 no connection to a daemon
"""
import argparse
import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

sys.dont_write_bytecode = True  # of rpc.py, beside it
from rpc import DEFAULT_SOCKET, Client, Failure, refused, usage

TIMEOUT_S = 60
ROOT = pathlib.Path(__file__).resolve().parents[1]
BLOCK = 4096
MIB = 1 << 20
UNITS = {"": 1, "K": 1 << 10, "M": MIB, "G": 1 << 30, "T": 1 << 40}
FILE_SYSTEMS = ("ext2", "ext3", "ext4")
# How the files of each format begin; what qemu-img calls it.
MAGIC = {b"QFI\xfb": "qcow2", b"KDMV": "vmdk", b"vhdxfile": "vhdx", b"conectix": "vpc"}
VDI_MAGIC_AT, VDI_MAGIC = 64, b"\x7f\x10\xda\xbe"
FORMATS = ("raw", "vdi", *MAGIC.values())
# Debian keeps mke2fs out of an ordinary user's PATH.
SEARCH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


def say(text):
    print(text, flush=True)


def pretty(size):
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            break
        size /= 1024
    else:
        unit = "GiB"
    return f"{size:g} bytes" if unit == "bytes" else f"{size:.1f} {unit}"


def program(name, package):
    path = shutil.which(name, path=SEARCH)
    if path is None:
        raise refused(f"this needs {name}, which is not installed: apt-get install {package}")
    return path


def copy_program():
    built = pathlib.Path(os.environ.get("SLUICE_BUILD_DIR", ROOT / "build/release")) / "app/copy/sluice-copy"
    path = str(built) if built.exists() else shutil.which("sluice-copy")
    if path is None:
        raise refused(f"{built} is not built: scripts/build")
    return path


def run(command, **options):
    """Runs a tool; its output is shown when it fails."""
    done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          check=False, **options)
    if done.returncode != 0:
        raise refused(f"{pathlib.Path(command[0]).name} failed (status {done.returncode}):\n{done.stdout.rstrip()}")
    return done.stdout


def run_shown(command):
    """Runs a tool that shows its progress and its complaints itself; true if it succeeds. It does not outlive us."""
    with signals_held() as held:
        process = subprocess.Popen([str(word) for word in command],
                                   preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, held))
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, held)
            return process.wait() == 0
        except BaseException:
            process.kill()
            process.wait()
            raise


@contextlib.contextmanager
def signals_held():
    """What is done is done wholly, and known to have been done, before a signal ends us."""
    held = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, held)
    try:
        yield held
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, held)


# --- Sources: each becomes a raw file ---


def size_of_tree(root):
    """(bytes that a file system needs for the files, number of files)."""
    data, seen = 0, set()
    for directory, names, files in os.walk(root, onerror=raise_unreadable):
        for name in names + files:
            status = os.lstat(os.path.join(directory, name))
            if (status.st_dev, status.st_ino) in seen:  # a hard link
                continue
            seen.add((status.st_dev, status.st_ino))
            data += -(-status.st_size // BLOCK) * BLOCK
    return data, len(seen)


def raise_unreadable(error):
    raise error


def make_file_system(source, size, kind, label, target):
    data, files = size_of_tree(source)
    # The inodes, the journal, and some room to work in.
    size = size or -(-(data * 5 // 4 + files * 512 + 32 * MIB) // MIB) * MIB
    if data > size:
        raise refused(f"{source} holds {pretty(data)}: too much for --size {pretty(size)}")
    say(f"making an {kind} file system of {pretty(size)} from {source} ({files} files, {pretty(data)})")
    target.touch()
    os.truncate(target, size)
    # What is left for the guest's kernel to initialise would cost each clone the same clusters again.
    options = "root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0,nodiscard"
    try:
        run([program("mke2fs", "e2fsprogs"), "-q", "-F", "-t", kind, "-b", BLOCK, "-m", 0, "-L", label[:16],
             "-N", max(size // 16384, 2 * files), "-E", options, "-d", source, target])
    except Failure as failure:
        if "allocate" in str(failure):
            raise refused(f"{failure}\nDoes it fit? A larger --size than {pretty(size)} may help.") from None
        raise
    return target


def format_of(source):
    with open(source, "rb") as file:
        start = file.read(VDI_MAGIC_AT + len(VDI_MAGIC))
    if start[VDI_MAGIC_AT:] == VDI_MAGIC:
        return "vdi"
    return next((name for magic, name in MAGIC.items() if start.startswith(magic)), "raw")


def check_alone(source, info):
    """Refuses an image that draws in other files: a stranger's could name any file of this host."""
    details = info.get("format-specific", {}).get("data", {})
    others = [info.get("backing-filename"), details.get("data-file"),
              *(extent["filename"] for extent in details.get("extents", []) if "filename" in extent)]
    for other in others:
        if other and os.path.realpath(other) != os.path.realpath(source):
            raise refused(f"{source} is not complete: it refers to {other}. If you trust it, make one file of it "
                          f"first: qemu-img convert -O raw {source} NEW")


def convert(source, kind, target):
    tool = program("qemu-img", "qemu-utils")
    check_alone(source, json.loads(run([tool, "info", "--output=json", "-f", kind, source])))
    say(f"converting {source} from {kind}")
    progress = ["-p"] if sys.stdout.isatty() else []
    if not run_shown([tool, "convert", *progress, "-f", kind, "-O", "raw", source, target]):
        raise refused(f"qemu-img could not convert {source}: see above")
    return target


def raw_file(arguments, directory):
    """The path of a raw file of what is to be imported; if one has to be made, then in `directory`."""
    source, target = pathlib.Path(arguments.source), pathlib.Path(directory) / "image.raw"
    if source.is_dir():
        if arguments.format:
            raise usage("--format is for files, and this is a directory")
        return make_file_system(source, arguments.size, arguments.fs or "ext4", arguments.name, target)
    if arguments.fs:
        raise usage("--fs is for directories, and this is a file")
    kind = arguments.format or format_of(source)
    return source if kind == "raw" else convert(source, kind, target)


def size_of(path):
    with open(path, "rb") as file:  # st_size of a block device is 0
        return file.seek(0, os.SEEK_END)


# --- Volumes ---


def find_volume(client, name):
    """What bdev_get_bdevs tells of a volume; None when there is none."""
    return next((bdev for bdev in volumes(client) if name in (bdev["name"], *bdev["aliases"])), None)


def volumes(client):
    return [bdev for bdev in client.call("bdev_get_bdevs") if "lvol" in bdev["driver_specific"]]


def undo(client, method, params):
    """Makes the call when a block is left, however. It is not interrupted, and does not hide why."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    try:
        client.call(method, params)
    except Failure as failure:
        print(f"image.py: left behind: {', '.join(params.values())}: {failure}", file=sys.stderr)


def write_image(client, raw, size, arguments):
    """A volume with the file's data, which becomes the snapshot that is the image."""
    store, image = arguments.store, f"{arguments.store}/{arguments.name}"
    working = f"{arguments.name}.import"
    if find_volume(client, f"{store}/{working}"):
        raise refused(f"{store}/{working} is there: another import of {arguments.name} is under way, or was killed; "
                      f"then delete it (rpc.py bdev_lvol_delete {store}/{working}) and try again")
    with contextlib.ExitStack() as stack:
        with signals_held():
            client.call("bdev_lvol_create",
                        {"lvs_name": store, "lvol_name": working, "size": size, "thin_provision": True})
            # Of the snapshot nothing goes with it.
            stack.callback(undo, client, "bdev_lvol_delete", {"name": f"{store}/{working}"})
            controller = f"import-{os.getpid()}"
            client.call("vhost_create_blk_controller", {"ctrlr": controller, "dev_name": f"{store}/{working}"})
            stack.callback(undo, client, "vhost_delete_controller", {"ctrlr": controller})
            socket_path = client.call("vhost_get_controllers", {"name": controller})[0]["socket"]
        verify = [] if arguments.no_verify else ["--verify"]
        if not run_shown([copy_program(), raw, socket_path, "--new", *verify]):
            raise refused(f"the data could not be brought to {image}: see above")
        with signals_held():
            client.call("bdev_lvol_snapshot", {"lvol_name": f"{store}/{working}", "snapshot_name": arguments.name})


def import_image(client, arguments):
    image = f"{arguments.store}/{arguments.name}"
    if "/" in arguments.name:
        raise usage(f"--name must not have a slash in it; the store is --store {arguments.store}")
    client.call("bdev_lvol_get_lvstores", {"lvs_name": arguments.store})
    if find_volume(client, image):
        raise refused(f"{image} is there already; another --name, or rpc.py bdev_lvol_delete {image}")
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="sluice-image-") as directory:
        raw = raw_file(arguments, directory)
        least = size_of(raw)
        size = arguments.size or least
        if least > size:
            raise refused(f"{arguments.source} has {pretty(least)}: too much for --size {pretty(size)}")
        write_image(client, raw, size, arguments)
    used = client.call("bdev_lvol_get_usage", {"name": image})["allocated_bytes"]
    say(f"{image}: {pretty(size)}, of which {pretty(used)} are used; took {time.monotonic() - begin:.1f} s")


def clone_image(client, arguments):
    store, slash, name = arguments.image.rpartition("/")
    if not slash:
        raise usage(f"--image must be STORE/NAME, not '{arguments.image}'; image.py list shows the images")
    prefix = f"{name}-" if arguments.prefix is None else arguments.prefix
    made = []
    begin = time.monotonic()
    try:
        for number in range(arguments.first, arguments.first + arguments.count):
            with signals_held():
                client.call("bdev_lvol_clone", {"snapshot_name": arguments.image, "clone_name": f"{prefix}{number}"})
                made.append(f"{store}/{prefix}{number}")
    except BaseException:
        for clone in reversed(made):
            undo(client, "bdev_lvol_delete", {"name": clone})
        raise
    ms = (time.monotonic() - begin) * 1000
    names = made[0] if len(made) == 1 else f"{made[0]} to {made[-1]}"
    say(f"made {len(made)} clones of {arguments.image} in {ms:.1f} ms: {names}")


def list_images(client, _):
    sizes = {store["uuid"]: store["cluster_size"] for store in client.call("bdev_lvol_get_lvstores")}
    rows = [("IMAGE", "SIZE", "USED", "CLONES")]
    for bdev in volumes(client):
        volume = bdev["driver_specific"]["lvol"]
        if volume["snapshot"]:
            used = volume["num_allocated_clusters"] * sizes[volume["lvol_store_uuid"]]
            rows.append((bdev["aliases"][0], pretty(bdev["num_blocks"] * bdev["block_size"]), pretty(used),
                         str(len(volume["clones"]))))
    if len(rows) == 1:
        say("no images; image.py import makes one")
        return
    width = max(len(row[0]) for row in rows)
    for name, *figures in rows:
        say(f"{name:<{width}}" + "".join(f" {figure:>10}" for figure in figures))


# --- The command line ---


def parse_size(text):
    number = text.upper().removesuffix("IB").removesuffix("B")
    unit = number[-1:] if number[-1:].isalpha() else ""
    try:
        size = int(float(number.removesuffix(unit)) * UNITS[unit])
    except (ValueError, KeyError, OverflowError):
        size = 0
    if not 0 < size < 1 << 62:
        raise argparse.ArgumentTypeError(f"must be a size, such as 512M or 20G, not '{text}'")
    return -(-size // BLOCK) * BLOCK


def positive(text):
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a number above 0, not '{text}'")
    return int(text)


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise usage(f"{message}; see image.py --help")

    def print_help(self, file=None):
        print(__doc__.strip())


def parser():
    main_parser = Parser(prog="image.py", allow_abbrev=False)
    main_parser.add_argument("-s", "--socket", default=os.environ.get("SLUICE_RPC_SOCKET") or DEFAULT_SOCKET)
    commands = main_parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("import", allow_abbrev=False)
    one.add_argument("--store", required=True)
    one.add_argument("--name", required=True)
    one.add_argument("--size", type=parse_size)
    one.add_argument("--fs", choices=FILE_SYSTEMS)
    one.add_argument("--format", choices=FORMATS)
    one.add_argument("--no-verify", action="store_true")
    one.add_argument("source", metavar="SOURCE")
    one.set_defaults(run=import_image)
    one = commands.add_parser("clone", allow_abbrev=False)
    one.add_argument("--image", required=True)
    one.add_argument("--count", type=positive, required=True)
    one.add_argument("--prefix")
    one.add_argument("--first", type=int, default=0)
    one.set_defaults(run=clone_image)
    commands.add_parser("list", allow_abbrev=False).set_defaults(run=list_images)
    return main_parser


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exception: what was begun is undone
    try:
        arguments = parser().parse_args()
        arguments.run(Client(arguments.socket, TIMEOUT_S), arguments)
    except Failure as failure:
        print(f"image.py: {failure}", file=sys.stderr)
        return failure.code
    except OSError as error:
        print(f"image.py: {error.filename or ''}: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
