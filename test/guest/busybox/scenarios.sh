# scenarios.sh: what a guest can be asked to do. Sourced by init; one function per scenario.
#
# Parameters are shell variables, with defaults: device (vda). A scenario ends at its first failed check.
# Tools which busybox has too, with fewer options, are called by path: its shell prefers its own.

run_scenario() (  # a subshell: parameters and `exit` stay inside
  name=$1
  shift
  for parameter in "$@"; do
    export "$parameter"
  done
  : "${device:=vda}"
  disk=/dev/$device
  sys=/sys/block/$device
  case $name in
    ext4 | verify | files | raw | loop | move | resize | ioerror | demo | root | poweroff) ;;
    *) fail "the guest knows no scenario '$name'" ;;
  esac
  [ "$name" = poweroff ] || [ -b "$disk" ] || fail "the guest has no $disk: the console log has the driver's messages"
  "scenario_$name"
)

tell() { echo "$*" >&3; }                       # a line for the host
step() { echo "* $*"; tell "STEP $*"; }           # ... and for a human at the console
pass() { tell "RESULT ok $name $*"; exit 0; }
fail() {
  echo "FAILED: $*"
  tell "RESULT fail $name: $*"
  exit 1
}
# Runs a command with its output on the console; its failure is the scenario's failure.
must() { "$@" || fail "\`$*\` failed with status $?"; }

partition() { echo "${disk}1"; }
sectors() { cat "$sys/size"; }
# O_DIRECT, past the page cache; the rest of dd's options follow. from_disk's skip= is in bytes.
to_disk() { from=$1; shift; dd if="$from" of="$disk" oflag=direct conv=notrunc status=none "$@"; }
from_disk() { dd if="$disk" iflag=direct,skip_bytes status=none "$@"; }
drop_caches() { echo 3 > /proc/sys/vm/drop_caches; }
now_s() { cut -d. -f1 /proc/uptime; }

make_filesystem() {
  step "partitioning $disk ($(($(sectors) / 2048)) MiB)"
  echo 'start=2048, type=83' | must sfdisk -q --label dos --wipe always --wipe-partitions always "$disk"
  step "mkfs.ext4 $(partition)"
  must mkfs.ext4 -q -F "$(partition)"
}
mount_it() { must mount -t ext4 "$(partition)" /mnt; }

# Files of many sizes: small ones share blocks of metadata, large ones make large requests.
write_files() {
  step "writing files"
  for i in 1 2 3 4 5 6 7 8; do
    must dd if=/dev/urandom of=/mnt/small$i bs=1000 count=$((i * i)) status=none
  done
  must dd if=/dev/urandom of=/mnt/large bs=64k count=$((${large_mib:-8} * 16)) status=none
  (cd /mnt && must sha256sum small* large > SHA256SUMS) || exit 1
  must sync
}
check_files() {
  drop_caches
  (cd /mnt && must sha256sum -c -s SHA256SUMS) || exit 1
}

# ---- scenarios ----

# A file system from scratch; its contents survive unmounting, dropped caches and mounting again.
scenario_ext4() {
  make_filesystem
  mount_it
  write_files
  step "unmounting, mounting again, verifying checksums"
  must umount /mnt
  mount_it
  check_files
  sums=$(sha256sum < /mnt/SHA256SUMS | cut -d' ' -f1)
  must umount /mnt
  pass "sums=$sums"
}

# What `ext4` (or `files`) wrote is still there: after a reboot, a killed guest, another back end.
# files=N: file1 ... fileN, which `files` reported as synced, must be complete.
scenario_verify() {
  step "checking the file system"
  e2fsck -p -f "$(partition)"
  status=$?  # 1: the journal was replayed and a count corrected, which a killed guest may leave behind
  [ $status -le 1 ] || fail "e2fsck finds damage (status $status)"
  mount_it
  [ ! -e /mnt/SHA256SUMS ] || check_files
  i=1
  while [ $i -le "${files:-0}" ]; do
    (cd /mnt && sha256sum -c -s file$i.sum) || fail "file$i was synced but is now missing or different"
    i=$((i + 1))
  done
  must umount /mnt
  pass "files=${files:-0}"
}

# Writes and syncs one file after the other until killed (or until limit_s); tells after each sync.
scenario_files() {
  make_filesystem
  mount_it
  end=$(($(now_s) + ${limit_s:-60}))
  i=1
  while [ "$(now_s)" -lt $end ]; do
    must dd if=/dev/urandom of=/mnt/file$i bs=64k count=4 status=none
    (cd /mnt && must sha256sum file$i > file$i.sum) || exit 1
    must sync
    tell "SYNCED $i"
    i=$((i + 1))
  done
  must umount /mnt
  pass "files=$((i - 1))"
}

# Without a file system: O_DIRECT at all sizes, discard, zero-out, flush, the device's end.
# size_bytes=N and queues=N: what the device must have.
scenario_raw() {
  bytes=$(must blockdev --getsize64 "$disk") || exit 1
  [ "$bytes" -eq $(($(sectors) * 512)) ] || fail "BLKGETSIZE64 says $bytes, sysfs $(sectors) sectors"
  [ "$bytes" -eq "${size_bytes:-$bytes}" ] || fail "the disk has $bytes bytes, not $size_bytes"
  has=$(ls "$sys/mq" | wc -l)
  [ "$has" -eq "${queues:-$has}" ] || fail "the disk has $has queues, not $queues"

  step "O_DIRECT patterns, $has queues"
  cpu=0
  workers=
  for bs in 512 4k 64k 1M; do
    cpu=$(((cpu + 1) % $(nproc)))  # each CPU has its own queue, if there are as many
    write_and_compare $bs $cpu &
    workers="$workers $!"
  done
  for worker in $workers; do
    wait "$worker" || fail "an O_DIRECT worker failed (its message stands on the console)"
  done

  step "discard"
  cmp_at 1M 16 || fail "the 1M pattern changed before the discard"
  discard_max=$(cat "$sys/queue/discard_max_bytes")
  if [ "$discard_max" -gt 0 ]; then
    must /sbin/blkdiscard -f -o 17M -l 1M "$disk"
    # The discarded MiB may read as anything, but must be readable; its neighbours may not change.
    must dd if="$disk" of=/dev/null bs=1M skip=17 count=1 iflag=direct status=none
    restore_pattern 1
    cmp_at 1M 16 || fail "discard changed its neighbours"
  fi

  step "zero-out"
  must /sbin/blkdiscard -f -z -o 18M -l 1M "$disk"
  from_disk bs=1M skip=18M count=1 | cmp -n 1048576 - /dev/zero ||
    fail "zero-out left data"
  restore_pattern 2
  cmp_at 1M 16 || fail "zero-out changed its neighbours"

  step "flush, device's end"
  must dd if=/tmp/pattern.4k of="$disk" bs=4k seek=64 count=1 conv=notrunc,fsync status=none
  must dd if="$disk" of=/tmp/last bs=512 skip=$(($(sectors) - 1)) count=1 iflag=direct status=none
  [ "$(stat -c %s /tmp/last)" -eq 512 ] || fail "the last sector cannot be read"
  dd if="$disk" of=/tmp/beyond bs=512 skip="$(sectors)" count=1 iflag=direct status=none
  [ "$(stat -c %s /tmp/beyond)" -eq 0 ] || fail "a read past the end returned data"
  if to_disk /dev/zero bs=512 seek="$(sectors)" count=1 2> /dev/null; then
    fail "a write past the end succeeded"
  fi
  pass "bytes=$bytes queues=$has discard_max=$discard_max"
}
# 4 MiB in requests of $1 from CPU $2; each size has its own place on the disk.
write_and_compare() {
  mib=4
  [ "$1" != 512 ] || mib=1  # 2,048 requests are enough, and emulated guests are slow
  dd if=/dev/urandom of=/tmp/pattern.$1 bs=1M count=$mib status=none
  taskset -c $2 dd if=/tmp/pattern.$1 of="$disk" bs=$1 oflag=direct,seek_bytes seek=$(place_mib $1)M conv=notrunc \
    status=none && cmp_at $1 "$(place_mib $1)"
}
# The pattern of request size $1 stands at MiB $2.
cmp_at() {
  from_disk bs=$1 skip=${2}M count=$((${mib:-4} * 1048576 / $(size_of $1))) | cmp - /tmp/pattern.$1
}
# Puts MiB $1 of the 1M pattern back into its place.
restore_pattern() {
  must dd if=/tmp/pattern.1M of="$disk" bs=1M skip=$1 seek=$((16 + $1)) count=1 oflag=direct conv=notrunc status=none
}
place_mib() { case $1 in 512) echo 4 ;; 4k) echo 8 ;; 64k) echo 12 ;; 1M) echo 16 ;; esac; }
size_of() { case $1 in 512) echo 512 ;; 4k) echo 4096 ;; 64k) echo 65536 ;; 1M) echo 1048576 ;; esac; }

# Writes and verifies without end (until limit_s), and says so after each pass: two workers, so that
# requests overlap. A pass has data of its own: an old pass's data is a mismatch.
# packed=0|1: what kind of rings the device must have.
scenario_loop() {
  check_rings
  end=$(($(now_s) + ${limit_s:-10}))
  pass=0
  while [ "$(now_s)" -lt $end ]; do
    loop_worker 0 64k 16 &
    other=$!
    loop_worker 1 4k 64 || fail "pass $((pass + 1)): mismatch or I/O error in 4 KiB requests"
    wait $other || fail "pass $((pass + 1)): mismatch or I/O error in 64 KiB requests"
    pass=$((pass + 1))
    tell "PASS $pass"
  done
  pass "passes=$pass"
}
check_rings() {
  bit=$(cut -c35 "$sys/device/features")  # RING_PACKED, 34, of what was negotiated
  [ "$bit" = "${packed:-$bit}" ] || fail "RING_PACKED is $bit, not $packed"
}
loop_worker() {  # number, request size, requests
  at=$((32 * (1 + $1)))M
  dd if=/dev/urandom of=/tmp/loop$1 bs=$2 count=$3 status=none &&
    to_disk /tmp/loop$1 bs=$2 count=$3 oflag=seek_bytes seek=$at &&
    from_disk bs=$2 count=$3 skip=$at | cmp - /tmp/loop$1
}

# For a guest that moves to another host meanwhile: as `loop`, until the host says a line. What a pass has read stays in
# the page cache, where only the device has written it, and the next pass must find it there.
scenario_move() {
  check_rings
  step "filling what will be read again and again"
  must dd if=/dev/urandom of=/tmp/cached bs=64k count=64 status=none
  must to_disk /tmp/cached bs=64k oflag=seek_bytes seek=96M
  cmp_cached || fail "what was just written is not there"
  rm -f /tmp/told
  { read -r _ <&3; touch /tmp/told; } &
  pass=0
  while [ ! -e /tmp/told ]; do
    loop_worker 0 64k 16 &
    other=$!
    loop_worker 1 4k 64 || fail "pass $((pass + 1)): mismatch or I/O error in 4 KiB requests"
    wait $other || fail "pass $((pass + 1)): mismatch or I/O error in 64 KiB requests"
    cmp_cached || fail "pass $((pass + 1)): what had been read before has changed in memory"
    drop_caches
    cmp_cached || fail "pass $((pass + 1)): what was written at the beginning has changed"
    pass=$((pass + 1))
    tell "PASS $pass"
  done
  pass "passes=$pass"
}
cmp_cached() { dd if="$disk" bs=64k count=64 skip=$((96 * 16)) status=none | cmp - /tmp/cached; }

# Waits until the disk has `to_sectors`; then its new last MiB must hold data.
scenario_resize() {
  was=$(sectors)
  tell "WAITING sectors=$was"
  end=$(($(now_s) + ${limit_s:-20}))
  while [ "$(sectors)" -ne "$to_sectors" ]; do
    [ "$(now_s)" -lt $end ] || fail "still $(sectors) sectors after ${limit_s:-20} s, not $to_sectors"
    usleep 20000
  done
  dd if=/dev/urandom of=/tmp/new bs=1M count=1 status=none
  last=$((to_sectors / 2048 - 1))
  must to_disk /tmp/new bs=1M seek=$last
  from_disk bs=1M skip=${last}M count=1 | cmp - /tmp/new || fail "the new space does not hold data"
  pass "sectors=$was->$to_sectors"
}

# Writes until the disk fails (hot removal): errors must come, not hang, and the guest must live on.
scenario_ioerror() {
  dd if=/dev/urandom of=/tmp/data bs=64k count=16 status=none
  end=$(($(now_s) + ${limit_s:-20}))
  good=0
  while to_disk /tmp/data bs=64k 2> /dev/null; do
    good=$((good + 1))
    tell "PASS $good"
    [ "$(now_s)" -lt $end ] || fail "no I/O error within ${limit_s:-20} s"
  done
  tell "ERROR first after $good good passes"
  for i in 1 2 3; do
    if to_disk /tmp/data bs=64k count=1 2> /dev/null; then
      fail "a write succeeded after the disk had failed"
    fi
  done
  sync
  pass "good_passes=$good"
}

# For people: scripts/guest-demo shows the console.
scenario_demo() {
  step "this is Linux $(uname -r); $disk has $(sectors) sectors and $(ls "$sys/mq" | wc -l) queue(s)"
  make_filesystem
  step "mounting"
  mount_it
  write_files
  (cd /mnt && cat SHA256SUMS)
  step "unmounting, mounting again, verifying checksums"
  must umount /mnt
  mount_it
  check_files
  (cd /mnt && sha256sum -c SHA256SUMS)
  df -h /mnt | tail -n 1
  must umount /mnt
  pass "all checksums match"
}

# On a guest whose root is the disk: what the boot before wrote is there, and so is what this one writes.
# boots=N: how many boots the disk must have seen, with this one.
scenario_root() {
  root=$(awk '$2 == "/" { print $1, $3 }' /proc/mounts | tail -n 1)
  step "this is Linux $(uname -r); its root is $root, $(($(sectors) / 2048)) MiB"
  [ "$root" = "$disk ext4" ] || fail "the root is not an ext4 file system on $disk"
  if [ -e /mnt/SHA256SUMS ]; then
    step "verifying what the boot before wrote"
    check_files
  fi
  echo boot >> /boots
  has=$(wc -l < /boots)
  [ "$has" -eq "${boots:-$has}" ] || fail "this is boot $has of this disk, not $boots"
  large_mib=2 write_files
  step "verifying checksums, past the cache"
  check_files
  (cd /mnt && sha256sum -c SHA256SUMS)
  df -h / | tail -n 1
  pass "boots=$has"
}

scenario_poweroff() {
  sync
  [ ! -e /boots ] || mount -o remount,ro /  # a root on a disk is left clean
  tell "RESULT ok poweroff"
  poweroff -f
}
