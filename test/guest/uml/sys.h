// sys.h: the few Linux system calls and string helpers that init.c needs, without a C library.
//
// Debian's static busybox and static glibc programs die inside User-Mode Linux on hosts with AVX-512
// (their start-up code asks the CPU for features that UML's fallback does not save), so the guest's
// only program brings everything it needs. x86-64 only, as is UML itself.
#pragma once

typedef unsigned char u8;
typedef unsigned long u64;
typedef long i64;

enum {
  kSysRead = 0,
  kSysWrite = 1,
  kSysOpen = 2,
  kSysClose = 3,
  kSysMmap = 9,
  kSysIoctl = 16,
  kSysPread = 17,
  kSysPwrite = 18,
  kSysFsync = 74,
  kSysMkdir = 83,
  kSysMknod = 133,
  kSysMount = 165,
  kSysReboot = 169,
  kSysExit = 60,
  kSysClockGettime = 228,
  kSysFinitModule = 313,
};

enum { O_RDONLY = 0, O_RDWR = 2, O_DIRECT = 040000 };
enum { S_IFBLK = 0060000 };
enum { PROT_READ = 1, PROT_WRITE = 2, MAP_PRIVATE = 2, MAP_ANONYMOUS = 0x20 };

// linux/fs.h
enum {
  BLKFLSBUF = 0x1261,   // write back and drop the page cache of a block device
  BLKDISCARD = 0x1277,  // u64 {offset, length}, bytes
  BLKZEROOUT = 0x127f,  // u64 {offset, length}, bytes
};
#define BLKGETSIZE64 0x80081272ul  // u64 bytes

static inline i64 syscall6(i64 number, i64 a, i64 b, i64 c, i64 d, i64 e, i64 f) {
  register i64 r10 __asm__("r10") = d;
  register i64 r8 __asm__("r8") = e;
  register i64 r9 __asm__("r9") = f;
  i64 result;
  __asm__ volatile("syscall"
                   : "=a"(result)
                   : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                   : "rcx", "r11", "memory");
  return result;
}
// Every call takes its arguments as integers: pointers are cast once, here.
#define SYS(number, a, b, c, d, e, f) syscall6(number, (i64)(a), (i64)(b), (i64)(c), (i64)(d), (i64)(e), (i64)(f))

static inline i64 sys_open(const char* path, int flags) { return SYS(kSysOpen, path, flags, 0, 0, 0, 0); }
static inline i64 sys_close(i64 fd) { return SYS(kSysClose, fd, 0, 0, 0, 0, 0); }
static inline i64 sys_read(i64 fd, void* to, u64 n) { return SYS(kSysRead, fd, to, n, 0, 0, 0); }
static inline i64 sys_write(i64 fd, const void* from, u64 n) { return SYS(kSysWrite, fd, from, n, 0, 0, 0); }
static inline i64 sys_pread(i64 fd, void* to, u64 n, u64 at) { return SYS(kSysPread, fd, to, n, at, 0, 0); }
static inline i64 sys_pwrite(i64 fd, const void* from, u64 n, u64 at) { return SYS(kSysPwrite, fd, from, n, at, 0, 0); }
static inline i64 sys_fsync(i64 fd) { return SYS(kSysFsync, fd, 0, 0, 0, 0, 0); }
static inline i64 sys_ioctl(i64 fd, u64 request, void* arg) { return SYS(kSysIoctl, fd, request, arg, 0, 0, 0); }
static inline i64 sys_mount(const char* type, const char* at) {
  SYS(kSysMkdir, at, 0755, 0, 0, 0, 0);
  return SYS(kSysMount, type, at, type, 0, 0, 0);
}
static inline void* sys_pages(u64 size_bytes) {
  return (void*)SYS(kSysMmap, 0, size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}
static inline void sys_power_off(void) {
  SYS(kSysReboot, 0xfee1dead, 672274793, 0x4321fedc, 0, 0, 0);
  SYS(kSysExit, 1, 0, 0, 0, 0, 0);
}

// CLOCK_MONOTONIC.
static inline u64 sys_now_ns(void) {
  u64 time[2] = {0, 0};
  SYS(kSysClockGettime, 1, time, 0, 0, 0, 0);
  return time[0] * 1000000000 + time[1];
}

// ---- text ----

static inline u64 text_length(const char* text) {
  u64 n = 0;
  while (text[n]) ++n;
  return n;
}
static inline void say(const char* text) { sys_write(1, text, text_length(text)); }
static inline void say_number(u64 value) {
  char digits[21];
  int at = 20;
  digits[20] = 0;
  do {
    digits[--at] = (char)('0' + value % 10);
    value /= 10;
  } while (value);
  say(digits + at);
}
static inline u64 parse_number(const char* text) {
  u64 value = 0;
  while (*text >= '0' && *text <= '9') value = value * 10 + (u64)(*text++ - '0');
  return value;
}
// The value of `name` ("blocks=") in the environment, into which the kernel puts each `name=value` of
// its command line that it does not know itself; `otherwise` if absent.
static inline u64 env_number(char** env, const char* name, u64 otherwise) {
  const u64 n = text_length(name);
  for (; *env; ++env) {
    u64 i = 0;
    while (i < n && (*env)[i] == name[i]) ++i;
    if (i == n) return parse_number(*env + n);
  }
  return otherwise;
}
static inline u64 file_number(const char* path) {
  char text[32] = {0};
  const i64 fd = sys_open(path, O_RDONLY);
  if (fd < 0) return 0;
  sys_read(fd, text, sizeof text - 1);
  sys_close(fd);
  return parse_number(text);
}

// The compiler may turn loops into calls of these.
void* memset(void* to, int value, u64 n) {
  for (u64 i = 0; i < n; ++i) ((volatile u8*)to)[i] = (u8)value;
  return to;
}
void* memcpy(void* to, const void* from, u64 n) {
  for (u64 i = 0; i < n; ++i) ((volatile u8*)to)[i] = ((const u8*)from)[i];
  return to;
}
