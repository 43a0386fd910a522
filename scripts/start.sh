#!/usr/bin/env bash
# Builds Sluice and runs it with one disk: ./var/disk.img, offered to guests on the vhost-user-blk socket ./var/disk0.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
  cat <<'USAGE'
usage: scripts/start.sh [--guest]

Installs what is missing (scripts/setup), builds the release (scripts/build) and runs the daemon in the foreground:
  ./var/disk.img      sparse file of 1 GiB behind the disk, made when missing, kept afterwards
  ./var/disk0         vhost-user-blk socket: what a guest's virtual machine monitor connects to
  ./var/rpc.sock      JSON-RPC socket: what scripts/rpc.py connects to
  ./var/default.json  the configuration that says so
Ctrl-C or SIGTERM ends it.

  --guest   run the daemon in the background (log: ./var/sluice.log) with a store of logical volumes on a disk of its
            own, ./var/guest-demo.img, made anew each time; let scripts/guest-demo make an image of a small Linux and
            100 clones of it, and boot a guest from one of them; stop the daemon, and exit with the demonstration's
            verdict
  --help    this text
USAGE
}

guest=no
for argument in "$@"; do
  case $argument in
    --guest) guest=yes ;;
    --help | -h)
      usage
      exit 0
      ;;
    *)
      echo "start: unknown option: $argument" >&2
      usage >&2
      exit 2
      ;;
  esac
done
readonly guest

readonly daemon_binary=$PWD/build/release/app/vhost/sluice-vhost
readonly disk_bytes=$((1 << 30))
readonly start_seconds=20 stop_seconds=20

# The address of a UNIX socket has at most 107 characters: in a deep directory the paths become relative ones.
var=$PWD/var
if [[ ${#var} -gt 90 ]]; then var=var; fi
readonly var
disk=$var/disk.img
# The demonstration overwrites its disk.
readonly store=demo
if [[ $guest == yes ]]; then disk=$var/guest-demo.img; fi
readonly disk controller=$var/disk0 rpc=$var/rpc.sock config=$var/default.json log=$var/sluice.log
readonly pid_file=$var/sluice.pid

die() {
  echo "start: $*" >&2
  exit 1
}

# answers SOCKET: does a daemon answer on this RPC socket?
answers() {
  python3 - "$1" <<'PYTHON'
import json, socket, sys
try:
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(2)
        s.connect(sys.argv[1])
        s.sendall(b'{"jsonrpc": "2.0", "id": 1, "method": "spdk_get_version"}')
        sys.exit(0 if s.recv(1) else 1)
except OSError:
    sys.exit(1)
PYTHON
}

mkdir -p "$var"

# One daemon per directory. The daemon inherits the lock, so it is held as long as either of the two lives.
exec 9>"$var/.lock"
if ! flock -n 9; then
  die "already running here (process $(cat "$pid_file" 2>/dev/null || echo unknown), $rpc)." \
    "Use it, or end it first: kill $(cat "$pid_file" 2>/dev/null || echo PID)"
fi
if [[ -S $rpc ]] && answers "$rpc"; then
  die "another daemon answers on $rpc; end it first (it was not started by scripts/start.sh)"
fi

scripts/setup 9>&-
scripts/build release 9>&-
[[ -x $daemon_binary ]] || die "the build made no $daemon_binary"
if [[ $guest == yes && ! -x scripts/guest-demo ]]; then die "scripts/guest-demo is missing"; fi

rm -f "$rpc" "$controller"
if [[ $guest == yes ]]; then rm -f "$disk"; fi
made_disk="$disk (kept from before)"
if [[ ! -e $disk ]]; then
  truncate -s "$disk_bytes" "$disk"
  made_disk="$disk (new, sparse, 1 GiB)"
fi

python3 - "$disk" "$guest" "$store" >"$config" <<'PYTHON'
import json, sys
disk, guest, store = sys.argv[1:]
calls = [{"method": "bdev_aio_create", "params": {"name": "disk0", "filename": disk, "block_size": 512}}]
if guest == "yes":
    calls.append({"method": "bdev_lvol_create_lvstore", "params": {"bdev_name": "disk0", "lvs_name": store}})
    controllers = []
else:
    controllers = [{"method": "vhost_create_blk_controller", "params": {"ctrlr": "disk0", "dev_name": "disk0"}}]
print(json.dumps({"subsystems": [
    {"subsystem": "bdev", "config": calls},
    {"subsystem": "vhost_blk", "config": controllers},
]}, indent=2))
PYTHON

# The first core that this process may use: core 0 need not be ours in a container.
coremask=$(python3 -c 'import os; print(hex(1 << min(os.sched_getaffinity(0))))')
readonly coremask

daemon=''
demo=''
stopping=no

# Runs inside the traps, so that a signal just before a `wait` is not missed: the processes end, and `wait` returns.
ask_to_stop() {
  if [[ $stopping == yes ]]; then return; fi
  stopping=yes
  if [[ -n $demo ]]; then kill -TERM "$demo" 2>/dev/null || true; fi
  if [[ -n $daemon ]]; then kill -TERM "$daemon" 2>/dev/null || true; fi
}

# Ends the daemon: asks, waits, and only then kills. Fails when it had to kill or the daemon's own exit was not clean.
stop_daemon() {
  [[ -n $daemon ]] || return 0
  local code=0 deadline=$((SECONDS + stop_seconds))
  ask_to_stop
  while kill -0 "$daemon" 2>/dev/null && [[ $SECONDS -lt $deadline ]]; do sleep 0.05; done
  if kill -KILL "$daemon" 2>/dev/null; then echo "start: the daemon did not end within $stop_seconds s: killed" >&2; fi
  wait "$daemon" || code=$?
  daemon=''
  rm -f "$pid_file"
  return "$code"
}

# shellcheck disable=SC2317  # called by the trap
on_exit() {
  local code=$?
  trap - EXIT INT TERM
  stop_daemon || true
  exit "$code"
}
trap on_exit EXIT
trap ask_to_stop INT TERM

arguments=(-m "$coremask" -S "$var" -r "$rpc" -c "$config" --log-level NOTICE)
if [[ $guest == yes ]]; then
  "$daemon_binary" "${arguments[@]}" >"$log" 2>&1 </dev/null &
else
  "$daemon_binary" "${arguments[@]}" </dev/null &
fi
daemon=$!
echo "$daemon" >"$pid_file"

# Ready means: the RPC socket answers, which it does once the configuration is loaded, and the controller's socket, if
# there is a controller, is there. Prints the version.
wait_until_ready() {
  local wanted=$controller
  if [[ $guest == yes ]]; then wanted=$rpc; fi
  python3 - "$rpc" "$wanted" "$daemon" "$start_seconds" 9>&- <<'PYTHON'
import json, os, signal, socket, sys, time
rpc, controller, daemon, seconds = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
signal.signal(signal.SIGINT, lambda *_: sys.exit(1))

def version():
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(2)
        s.connect(rpc)
        s.sendall(b'{"jsonrpc": "2.0", "id": 1, "method": "spdk_get_version"}')
        answer = b""
        while True:
            part = s.recv(4096)
            if not part:
                raise OSError("connection closed")
            answer += part
            try:
                return json.loads(answer)["result"]["version"]
            except ValueError:
                continue

def alive():
    # A process that has ended but was not waited for yet is a zombie, "Z" after the name in parentheses.
    try:
        with open(f"/proc/{daemon}/stat") as f:
            return f.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False

deadline = time.monotonic() + seconds
last = "no answer yet"
while time.monotonic() < deadline:
    if not alive():
        sys.exit("start: the daemon ended while starting")
    try:
        answer = version()
        if os.path.exists(controller):
            print(answer)
            sys.exit(0)
        last = f"{controller} is not there"
    except (OSError, KeyError, TypeError) as error:
        last = f"{rpc}: {error!r}"
    time.sleep(0.02)
sys.exit(f"start: the daemon is not ready after {seconds:.0f} s: {last}")
PYTHON
}

if ! version=$(wait_until_ready); then
  if [[ $stopping == yes ]]; then
    stop_daemon || true
    echo "start: stopped while starting"
    exit 0
  fi
  if [[ $guest == yes ]]; then tail -n 20 "$log" >&2; fi
  die "the daemon did not start: see the lines above. By hand: $daemon_binary ${arguments[*]}"
fi

# Ends the script as a signal asked for: exit code 0 when the daemon ended cleanly.
finish_stopped() {
  if stop_daemon; then
    echo "start: stopped; $disk is kept"
    exit 0
  fi
  die "the daemon did not end cleanly"
}

if [[ $guest == yes ]]; then
  echo "start: Sluice ($version) runs, process $daemon, log $log; its store '$store' is on $disk"
  scripts/guest-demo --store "$store" -s "$rpc" 9>&- &
  demo=$!
  code=0
  wait "$demo" || code=$?
  if [[ $stopping == yes ]]; then
    wait "$demo" 2>/dev/null || true
    finish_stopped
  fi
  demo=''
  if ! kill -0 "$daemon" 2>/dev/null; then
    tail -n 20 "$log" >&2
    die "the daemon ended during the demonstration; its log: $log"
  fi
  if ! stop_daemon; then
    tail -n 20 "$log" >&2
    die "the daemon did not end cleanly; its log: $log"
  fi
  echo "start: daemon stopped; its log: $log"
  exit "$code"
fi

memory='memory-backend-memfd,id=mem,size=1G,share=on'
if [[ $var == var ]]; then echo "start: this directory's path is long: the paths below are relative to $PWD"; fi
cat <<BANNER

Sluice ($version) is running, process $daemon.
  disk file     $made_disk
  bdev          disk0 (Linux AIO, 512-byte blocks)
  vhost socket  $controller
  RPC socket    $rpc
  configuration $config

Give the disk to a guest (add what your guest boots from, for example -drive file=guest.qcow2,if=virtio; the disk
is the next /dev/vdX; QEMU connects again by itself when the daemon is restarted):

  qemu-system-x86_64 -M q35,accel=kvm:tcg,memory-backend=mem -m 1G -smp 2 -nographic \\
    -object $memory \\
    -chardev socket,id=disk0,path=$controller,reconnect=1 \\
    -device vhost-user-blk-pci,chardev=disk0

No guest at hand? End this with Ctrl-C and run: scripts/start.sh --guest

Ask the daemon:

  scripts/rpc.py -s $rpc vhost_get_controllers

Ctrl-C ends it.
BANNER

# A trapped signal ends the first wait; the daemon's own end does as well.
code=0
wait "$daemon" || code=$?
if [[ $stopping == yes ]]; then finish_stopped; fi
daemon=''
rm -f "$pid_file"
# SIGTERM sent to the daemon itself, or the RPC to end it: a clean end, too.
if [[ $code -eq 0 ]]; then
  echo "start: the daemon has ended"
  exit 0
fi
die "the daemon ended by itself with code $code"
