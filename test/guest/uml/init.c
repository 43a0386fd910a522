// init.c: the only program of the User-Mode Linux guest. It drives the real Linux virtio-blk driver
// on /dev/vda, checks every byte it reads back, prints one line `RESULT ok ...` or `RESULT fail ...`
// and powers off. Parameters come from the kernel's command line (defaults in main):
//   blocks=N   4 KiB blocks written through the page cache: write-back puts many requests in flight
//   extents=M  64 KiB extents written with O_DIRECT, right after the blocks
//   seed=S     enters every word, so that a stale image cannot pass
//   size=B     what BLKGETSIZE64 must say, in bytes (0: not checked)
//   loop=1     all that again and again, each pass with the next seed, until the host writes to the last block of the
//              device; RESULT says how many passes there were
//   reads=N    instead of all that: N reads of 4 KiB with O_DIRECT at random places, one after another, which
//              are not checked; RESULT says how long one takes
// The host repeats the check on the image: uml.py knows pattern_word() too; keep them equal.
#include "sys.h"

enum { kBlock = 4096, kExtent = 65536, kSector = 512 };
static const char kDiscardMax[] = "/sys/block/vda/queue/discard_max_bytes";
static const char kZeroMax[] = "/sys/block/vda/queue/write_zeroes_max_bytes";
enum { kBucketNs = 500, kBuckets = 40000 };  // of the histogram: up to 20 ms
static u8* buffer;                           // kExtent bytes, page aligned as O_DIRECT demands

static void stop(void) {
  for (;;) sys_power_off();
}

static void fail(const char* what, u64 at, i64 result) {
  say("RESULT fail ");
  say(what);
  say(" at byte ");
  say_number(at);
  if (result < 0) {
    say(", errno ");
    say_number((u64)-result);
  } else {
    say(", got ");
    say_number((u64)result);
  }
  say("\n");
  stop();
}

static void expect(i64 result, i64 wanted, const char* what, u64 at) {
  if (result != wanted) fail(what, at, result);
}

// Word `index` of the device: no two are equal, so a swapped or shifted block shows.
static u64 pattern_word(u64 seed, u64 index) { return (index + seed * 1000003) * 0x9e3779b97f4a7c15ul; }

static void fill(u64 seed, u64 at, u64 n) {
  for (u64 i = 0; i < n / 8; ++i) ((u64*)buffer)[i] = pattern_word(seed, at / 8 + i);
}

static int is_pattern(u64 seed, u64 at, u64 from, u64 n) {
  for (u64 i = 0; i < n / 8; ++i)
    if (((u64*)(buffer + from))[i] != pattern_word(seed, at / 8 + i)) return 0;
  return 1;
}

static int is_zero(u64 from, u64 n) {
  for (u64 i = 0; i < n / 8; ++i)
    if (((u64*)(buffer + from))[i]) return 0;
  return 1;
}

static void write_pattern(i64 fd, u64 seed, u64 begin, u64 end, u64 step, const char* what) {
  for (u64 at = begin; at < end; at += step) {
    fill(seed, at, step);
    expect(sys_pwrite(fd, buffer, step, at), (i64)step, what, at);
  }
}

static void verify_pattern(i64 fd, u64 seed, u64 begin, u64 end, u64 step, const char* what) {
  for (u64 at = begin; at < end; at += step) {
    expect(sys_pread(fd, buffer, step, at), (i64)step, "read", at);
    if (!is_pattern(seed, at, 0, step)) fail(what, at, 0);
  }
}

// Virtio-blk does not promise what a discarded sector reads as, but a sector must be what it was or
// zeros: anything else is another sector's data. Returns how many sectors became zeros.
static u64 verify_discarded(i64 fd, u64 seed, u64 begin, u64 end) {
  u64 zeroed = 0;
  for (u64 at = begin; at < end; at += kBlock) {
    expect(sys_pread(fd, buffer, kBlock, at), kBlock, "read after discard", at);
    for (u64 i = 0; i < kBlock; i += kSector) {
      if (is_zero(i, kSector))
        ++zeroed;
      else if (!is_pattern(seed, at + i, i, kSector))
        fail("foreign data after discard", at + i, 0);
    }
  }
  return zeroed;
}

static void verify_zero(i64 fd, u64 begin, u64 end) {
  for (u64 at = begin; at < end; at += kBlock) {
    expect(sys_pread(fd, buffer, kBlock, at), kBlock, "read after zero-out", at);
    if (!is_zero(0, kBlock)) fail("data left after zero-out", at, 0);
  }
}

// The time that `share` percent of the reads did not exceed.
static u64 percentile_ns(const u64* buckets, u64 reads, u64 share) {
  u64 seen = 0, i = 0;
  while (i < kBuckets && (seen += buckets[i]) * 100 < reads * share) ++i;
  return (i + 1) * kBucketNs;
}

static void measure_reads(i64 fd, u64 size, u64 reads) {
  u64* const buckets = sys_pages(kBuckets * sizeof(u64));
  const u64 warm_up = reads / 10;
  u64 begin = 0, last = 0;
  for (u64 i = 0; i < warm_up + reads; ++i) {
    if (i == warm_up) begin = last = sys_now_ns();
    const u64 at = (pattern_word(1, i) >> 20) % (size / kBlock) * kBlock;
    expect(sys_pread(fd, buffer, kBlock, at), kBlock, "read", at);
    if (i < warm_up) continue;
    const u64 now = sys_now_ns(), bucket = (now - last) / kBucketNs;
    ++buckets[bucket < kBuckets ? bucket : kBuckets - 1];
    last = now;
  }
  say("RESULT ok size=");
  say_number(size);
  say(" reads=");
  say_number(reads);
  say(" mean_ns=");
  say_number((last - begin) / reads);
  say(" p50_ns=");
  say_number(percentile_ns(buckets, reads, 50));
  say(" p99_ns=");
  say_number(percentile_ns(buckets, reads, 99));
  say("\n");
  stop();
}

// One pass: writes, reads back, discards and zeroes. Returns how many sectors the discard made zeros.
static u64 write_and_verify(i64 cached, i64 fd, u64 seed, u64 blocks, u64 extents) {
  const u64 blocks_end = blocks * kBlock, end = blocks_end + extents * kExtent;
  write_pattern(cached, seed, 0, blocks_end, kBlock, "write");
  expect(sys_fsync(cached), 0, "fsync", blocks_end);
  write_pattern(fd, seed, blocks_end, end, kExtent, "O_DIRECT write");
  expect(sys_fsync(fd), 0, "fsync", end);
  expect(sys_ioctl(cached, BLKFLSBUF, 0), 0, "BLKFLSBUF", 0);
  verify_pattern(cached, seed, 0, blocks_end, kBlock, "wrong data");
  verify_pattern(fd, seed, 0, blocks_end, kBlock, "wrong data (O_DIRECT)");
  verify_pattern(fd, seed, blocks_end, end, kExtent, "wrong data (O_DIRECT)");

  // The first extent is discarded, the third zeroed; the second and fourth guard their edges.
  const u64 discard[2] = {blocks_end, kExtent}, zero[2] = {blocks_end + 2 * kExtent, kExtent};
  u64 zeroed = 0;
  if (extents >= 4) {
    if (file_number(kDiscardMax)) {
      expect(sys_ioctl(fd, BLKDISCARD, (void*)discard), 0, "BLKDISCARD", discard[0]);
      zeroed = verify_discarded(fd, seed, discard[0], discard[0] + discard[1]);
    }
    // Without write-zeroes the kernel writes zero pages: the outcome must be the same.
    expect(sys_ioctl(fd, BLKZEROOUT, (void*)zero), 0, "BLKZEROOUT", zero[0]);
    verify_zero(fd, zero[0], zero[0] + zero[1]);
    verify_pattern(fd, seed, blocks_end - (blocks ? kBlock : 0), blocks_end, kBlock, "discard hit its neighbour");
    verify_pattern(fd, seed, blocks_end + kExtent, zero[0], kExtent, "discard or zero-out hit its neighbour");
    verify_pattern(fd, seed, zero[0] + kExtent, end, kExtent, "zero-out hit its neighbour");
  }
  expect(sys_fsync(fd), 0, "fsync", 0);
  return zeroed;
}

static void set_up_devices(void) {
  sys_mount("devtmpfs", "/dev");
  sys_mount("sysfs", "/sys");
  const i64 module = sys_open("/virtio_blk.ko", O_RDONLY);
  if (module >= 0) expect(SYS(kSysFinitModule, module, "", 0, 0, 0, 0), 0, "insmod virtio_blk.ko", 0);
  // A UML kernel without devtmpfs leaves /dev empty: take the number from sysfs, "254:0\n".
  const u64 major = file_number("/sys/block/vda/dev");
  if (major) SYS(kSysMknod, "/dev/vda", S_IFBLK | 0600, major << 8, 0, 0, 0);
}

static void main_(char** env) {
  const u64 blocks = env_number(env, "blocks=", 2000);
  const u64 extents = env_number(env, "extents=", 500);
  const u64 seed = env_number(env, "seed=", 1);
  const u64 wanted_size = env_number(env, "size=", 0);
  const u64 loop = env_number(env, "loop=", 0);
  const u64 reads = env_number(env, "reads=", 0);
  buffer = sys_pages(kExtent);
  set_up_devices();

  const i64 cached = sys_open("/dev/vda", O_RDWR);
  if (cached < 0) fail("open /dev/vda: the driver found no device", 0, cached);
  const i64 fd = sys_open("/dev/vda", O_RDWR | O_DIRECT);
  if (fd < 0) fail("open /dev/vda with O_DIRECT", 0, fd);

  const u64 blocks_end = blocks * kBlock, end = blocks_end + extents * kExtent;
  u64 size = 0;
  expect(sys_ioctl(fd, BLKGETSIZE64, &size), 0, "BLKGETSIZE64", 0);
  if (wanted_size && size != wanted_size) fail("wrong device size", wanted_size, (i64)size);
  if (reads) measure_reads(fd, size, reads);
  if (size < end) fail("device too small for blocks= and extents=", end, (i64)size);
  expect(sys_pread(fd, buffer, kBlock, size), 0, "read at the end of the device", size);

  u64 passes = 0, zeroed = 0;
  do {
    zeroed = write_and_verify(cached, fd, seed + passes++, blocks, extents);
    expect(sys_pread(fd, buffer, kBlock, size - kBlock), kBlock, "read of the last block", size - kBlock);
  } while (loop && is_zero(0, kBlock));

  say("RESULT ok size=");
  say_number(size);
  say(" blocks=");
  say_number(blocks);
  say(" passes=");
  say_number(passes);
  say(" extents=");
  say_number(extents);
  say(" discard_max=");
  say_number(file_number(kDiscardMax));
  say(" sectors_zeroed_by_discard=");
  say_number(zeroed);
  say(" write_zeroes_max=");
  say_number(file_number(kZeroMax));
  say("\n");
  stop();
}

// The kernel enters with argc, argv..., 0, env..., 0 on a 16-byte aligned stack.
__attribute__((used)) static void start(u64* stack) { main_((char**)(stack + 1 + stack[0] + 1)); }
__asm__(".globl _start\n_start:\n  xor %ebp, %ebp\n  mov %rsp, %rdi\n  call start\n");
