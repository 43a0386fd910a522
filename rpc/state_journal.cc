#include "rpc/state_journal.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <span>

#include "lib/base/check.h"
#include "lib/base/crc32c.h"

namespace sluice::rpc {
namespace {

constexpr std::string_view kFormat = "sluice-state 1 ";
constexpr size_t kCrcDigits = 8;
constexpr uint64_t kReserveBytes = 256 << 10;
// Where the file system does not allocate in advance, it tells when it is full only as it is written to.
constexpr uint64_t kUnlimited = 1ULL << 62;

std::unexpected<std::string> refuse(std::string text) { return std::unexpected(std::move(text)); }

uint32_t checksum(std::string_view text) { return crc32c(std::as_bytes(std::span(text))); }

std::string to_line(std::string_view text) { return fmt::format("{:08x} {}\n", checksum(text), text); }

// What a line says, without its checksum; nothing when that does not hold.
std::optional<std::string_view> checked(std::string_view line) {
  if (line.size() <= kCrcDigits || line[kCrcDigits] != ' ') return std::nullopt;
  uint32_t crc = 0;
  const auto [end, error] = std::from_chars(line.data(), line.data() + kCrcDigits, crc, 16);
  if (error != std::errc{} || end != line.data() + kCrcDigits) return std::nullopt;
  const std::string_view text = line.substr(kCrcDigits + 1);
  return checksum(text) == crc ? std::optional(text) : std::nullopt;
}

std::optional<size_t> to_number(std::string_view text) {
  size_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  return error == std::errc{} && end == text.data() + text.size() ? std::optional(number) : std::nullopt;
}

std::expected<std::string, int> read_all(int fd) {
  std::string content;
  for (;;) {
    char chunk[65536];
    const ssize_t count = ::pread(fd, chunk, sizeof(chunk), static_cast<off_t>(content.size()));
    if (count == 0) return content;
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return std::unexpected(errno);
    content.append(chunk, static_cast<size_t>(count));
  }
}

}  // namespace

ssize_t StateSystem::write(int fd, const void* bytes, size_t size, off_t offset) {
  return ::pwrite(fd, bytes, size, offset);
}
int StateSystem::sync_data(int fd) { return ::fdatasync(fd); }
int StateSystem::sync(int fd) { return ::fsync(fd); }
int StateSystem::allocate(int fd, off_t offset, off_t size) {
  return ::fallocate(fd, FALLOC_FL_KEEP_SIZE, offset, size);
}
int StateSystem::rename(int directory, const char* from, const char* to) {
  return ::renameat(directory, from, directory, to);
}

StateSystem& StateSystem::real() {
  static StateSystem system;
  return system;
}

std::expected<std::unique_ptr<StateJournal>, std::string> StateJournal::open(const std::string& directory,
                                                                             StateSystem& system) {
  UniqueFd opened(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!opened) {
    return refuse(fmt::format("state directory {}: cannot open it: {}{}", directory, ::strerrordesc_np(errno),
                              errno == ENOENT ? "; to fix: mkdir" : ""));
  }
  if (::flock(opened.get(), LOCK_EX | LOCK_NB) != 0) {
    return refuse(fmt::format("state directory {}: {}", directory,
                              errno == EWOULDBLOCK
                                  ? "another daemon uses it: end that one, or give this one a directory of its own"
                                  : fmt::format("cannot lock it: {}", ::strerrordesc_np(errno))));
  }
  return adopt(directory, std::move(opened), system);
}

std::expected<std::unique_ptr<StateJournal>, std::string> StateJournal::adopt(const std::string& directory,
                                                                              UniqueFd locked, StateSystem& system) {
  std::unique_ptr<StateJournal> journal(new StateJournal(directory + "/" + kFileName, std::move(locked), system));
  if (auto loaded = journal->load(); !loaded) return refuse(std::move(loaded.error()));
  return journal;
}

std::expected<void, std::string> StateJournal::load() {
  UniqueFd file(::openat(directory_.get(), kFileName, O_RDWR | O_CLOEXEC | O_NOFOLLOW));
  if (!file && errno == ENOENT) return {};
  if (!file) return refuse(fmt::format("{}: cannot open it: {}", path_, ::strerrordesc_np(errno)));
  const auto content = read_all(file.get());
  if (!content) return refuse(fmt::format("{}: cannot read it: {}", path_, ::strerrordesc_np(content.error())));
  const auto whole_bytes = parse(*content);
  if (!whole_bytes) return refuse(fmt::format("{}, {}", path_, whole_bytes.error()));
  // Nothing is appended to half a line.
  if (*whole_bytes < content->size() &&
      (::ftruncate(file.get(), static_cast<off_t>(*whole_bytes)) != 0 || system_.sync(file.get()) != 0)) {
    return refuse(
        fmt::format("{}: cannot cut it off after {} bytes: {}", path_, *whole_bytes, ::strerrordesc_np(errno)));
  }
  file_ = std::move(file);
  size_bytes_ = allocated_bytes_ = *whole_bytes;
  return {};
}

// Fills lines_ and note_. Returns where the last whole line ends; the error begins with the line.
std::expected<size_t, std::string> StateJournal::parse(std::string_view content) {
  size_t written_at_once = 1;  // so many lines of the file were there before it got its name
  size_t number = 0;
  size_t begin = 0;
  while (begin < content.size()) {
    ++number;
    const size_t end = content.find('\n', begin);
    const std::string_view line = content.substr(begin, end == std::string_view::npos ? end : end - begin);
    const std::optional<std::string_view> text = end == std::string_view::npos ? std::nullopt : checked(line);
    const bool marked_off = end != std::string_view::npos && line.starts_with('#');
    if (!text && !marked_off) {
      const bool last = end == std::string_view::npos || end + 1 == content.size();
      if (!last || number <= written_at_once) {
        return refuse(fmt::format(
            "line {}: it is damaged: the checksum in front is not that of what follows. To fix: restore the "
            "file from a copy; or go on without what the line says: sed -i '{}s/^/#/' {}",
            number, number, path_));
      }
      note_ = fmt::format("{}, line {}: it was being written when the daemon ended, and answered no call: cut off",
                          path_, number);
      return begin;
    }
    if (number == 1 && text) {
      const auto count = text->starts_with(kFormat) ? to_number(text->substr(kFormat.size())) : std::nullopt;
      if (!count) {
        return refuse(
            fmt::format("line 1: '{}' is no format that this version knows, which is '{}COUNT': it is of "
                        "another version of the daemon: start that one",
                        text->substr(0, 64), kFormat));
      }
      written_at_once = *count + 1;
    } else if (text) {
      lines_.push_back({number, std::string(*text)});
    }
    begin = end + 1;
  }
  if (number < written_at_once) {
    return refuse(
        fmt::format("line {}: the file ends before it, and had {} lines at least. To fix: restore it from a "
                    "copy; or go on with what is there: sed -i '1s/^/#/' {}",
                    number + 1, written_at_once, path_));
  }
  return begin;
}

Result<> StateJournal::write_all(int fd, std::string_view bytes, uint64_t offset) {
  while (!bytes.empty()) {
    const ssize_t count = system_.write(fd, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return fail(count == 0 ? EIO : errno, "cannot write it");
    bytes.remove_prefix(static_cast<size_t>(count));
    offset += static_cast<uint64_t>(count);
  }
  return {};
}

Result<> StateJournal::reserve(uint64_t bytes) {
  CHECK(!needs_replacing());
  if (room_bytes() >= bytes) return {};
  const uint64_t size = std::max(bytes, kReserveBytes);
  if (system_.allocate(file_.get(), static_cast<off_t>(size_bytes_), static_cast<off_t>(size)) == 0) {
    allocated_bytes_ = size_bytes_ + size;
  } else if (errno == EOPNOTSUPP || errno == ENOSYS) {
    allocated_bytes_ = kUnlimited;
  } else {
    return fail_errno("there is no room in it");
  }
  return {};
}

Result<> StateJournal::append(std::string_view text) {
  CHECK(!needs_replacing() && !text.contains('\n'));
  const std::string line = to_line(text);
  // Once it has failed, neither the page cache nor a second fsync tells what is on the disk.
  broken_ = true;
  if (auto written = write_all(file_.get(), line, size_bytes_); !written) return written;
  if (system_.sync_data(file_.get()) != 0) return fail_errno("cannot flush it to the disk");
  broken_ = false;
  size_bytes_ += line.size();
  allocated_bytes_ = std::max(allocated_bytes_, size_bytes_);
  return {};
}

Result<> StateJournal::replace(const std::vector<std::string>& texts) {
  std::string content = to_line(fmt::format("{}{}", kFormat, texts.size()));
  for (const std::string& text : texts) {
    CHECK(!text.contains('\n'));
    content += to_line(text);
  }
  UniqueFd file(::openat(directory_.get(), kNewFileName, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!file) return fail_errno("cannot make a new file beside it");
  Result<> written = write_all(file.get(), content, 0);
  if (written && system_.sync(file.get()) != 0) written = fail_errno("cannot flush the new file to the disk");
  if (written && system_.rename(directory_.get(), kNewFileName, kFileName) != 0) {
    written = fail_errno("cannot put the new file into its place");
  }
  if (!written) {
    ::unlinkat(directory_.get(), kNewFileName, 0);
    return written;
  }
  file_ = std::move(file);
  size_bytes_ = allocated_bytes_ = content.size();
  broken_ = system_.sync(directory_.get()) != 0;
  if (broken_) return fail_errno("cannot flush the directory to the disk");
  return {};
}

}  // namespace sluice::rpc
