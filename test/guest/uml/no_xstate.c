// no_xstate.c: LD_PRELOADed into linux.uml. Hosts with AVX-512 or AMX have an extended register state
// larger than the buffer that this kernel hands to ptrace, and UML dies at boot. UML falls back to the
// older PTRACE_GETFPREGS when the host refuses the extended state: so refuse it.
#include <errno.h>
#include <stdarg.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { kGetRegset = 0x4204, kSetRegset = 0x4205, kXstateNote = 0x202 };

long ptrace(int request, ...) {
  va_list args;
  va_start(args, request);
  const int pid = va_arg(args, int);
  void* const addr = va_arg(args, void*);
  void* const data = va_arg(args, void*);
  va_end(args);
  if ((request == kGetRegset || request == kSetRegset) && (long)addr == kXstateNote) {
    errno = ENODEV;
    return -1;
  }
  // The kernel returns a peeked word through a pointer; the C library's ptrace returns the word.
  long word = 0;
  const int peek = request >= 1 && request <= 3;
  const long result = syscall(SYS_ptrace, request, pid, addr, peek ? &word : data);
  if (result < 0 || !peek) return result;
  errno = 0;
  return word;
}
