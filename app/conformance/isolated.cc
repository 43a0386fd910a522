#include "app/conformance/isolated.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <optional>

#include "app/conformance/front_end.h"
#include "lib/base/unique_fd.h"

namespace sluice::conformance {
namespace {

// What the child tells, one after the other: a letter, the length of the text, the text.
enum class News : char { kFailure = 'F', kSkip = 'S', kEnd = 'E' };

struct NewsHeader {
  News kind;
  uint32_t length;
};

class Teller final : public testing::EmptyTestEventListener {
 public:
  explicit Teller(int fd) : fd_(fd) {}

  void tell(News kind, const std::string& text) {
    const NewsHeader header{.kind = kind, .length = static_cast<uint32_t>(text.size())};
    std::string bytes(reinterpret_cast<const char*>(&header), sizeof(header));
    bytes += text;
    for (size_t done = 0; done < bytes.size();) {
      const ssize_t n = ::write(fd_, bytes.data() + done, bytes.size() - done);
      if (n < 0 && errno != EINTR) ::_exit(EXIT_FAILURE);
      if (n > 0) done += static_cast<size_t>(n);
    }
  }

 private:
  void OnTestPartResult(const testing::TestPartResult& result) override {
    if (result.skipped()) tell(News::kSkip, result.message());
    if (!result.failed()) return;
    std::string where;
    if (result.file_name() != nullptr)
      where =
          std::filesystem::path(result.file_name()).filename().string() + ":" + std::to_string(result.line_number());
    tell(News::kFailure, where + ": " + result.message());
    // Something was waited for in vain: to wait for it again and again would tell nothing new.
    if (begin_.passed()) throw testing::AssertionException(result);
  }

  const int fd_;
  const test::Deadline begin_{test::kTimeoutMs};
};

[[noreturn]] void run_here(const std::string& test, int fd) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  GTEST_FLAG_SET(filter, test);
  auto& listeners = testing::UnitTest::GetInstance()->listeners();
  delete listeners.Release(listeners.default_result_printer());
  auto* teller = new Teller(fd);  // GoogleTest's from now on
  listeners.Append(teller);
  [[maybe_unused]] const int failed = RUN_ALL_TESTS();
  teller->tell(News::kEnd, "");
  ::_exit(EXIT_SUCCESS);
}

// Exactly `size` bytes; false at the end of the stream, or when the time is up.
bool read_exactly(int fd, void* to, size_t size, const test::Deadline& deadline) {
  for (size_t done = 0; done < size;) {
    if (test::wait_for(fd, POLLIN, deadline) == 0) return false;
    const ssize_t n = ::read(fd, static_cast<char*>(to) + done, size - done);
    if (n == 0 || (n < 0 && errno != EINTR)) return false;
    if (n > 0) done += static_cast<size_t>(n);
  }
  return true;
}

}  // namespace

CaseResult run_isolated(const std::string& test, int time_limit_ms) {
  CaseResult result{.status = Status::kPassed};
  const auto failed = [&result](std::string message) {
    result.status = Status::kFailed;
    result.messages.push_back(std::move(message));
  };
  const test::Deadline deadline(time_limit_ms);
  int ends[2] = {-1, -1};
  const bool piped = ::pipe2(ends, O_CLOEXEC) == 0;
  const pid_t child = piped ? ::fork() : -1;
  if (child < 0) {
    failed(std::string("a process for the case cannot be made: ") + std::strerror(errno));
    return result;
  }
  const UniqueFd from_child(ends[0]);
  UniqueFd to_parent(ends[1]);
  if (child == 0) run_here(test, to_parent.get());
  to_parent.reset();

  bool ended = false;
  NewsHeader header{};
  while (!ended && read_exactly(from_child.get(), &header, sizeof(header), deadline)) {
    std::string text(header.length, '\0');
    if (!read_exactly(from_child.get(), text.data(), text.size(), deadline)) break;
    if (header.kind == News::kFailure) failed(std::move(text));
    if (header.kind == News::kSkip && result.status == Status::kPassed) {
      result.status = Status::kSkipped;
      result.messages.push_back(std::move(text));
    }
    ended = header.kind == News::kEnd;
  }
  if (!ended && deadline.passed()) failed("not at its end after " + std::to_string(time_limit_ms / 1000) + " s");
  if (!ended) ::kill(child, SIGKILL);
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  if (!ended && !deadline.passed())
    failed("the case itself came to an end too early: " +
           std::string(WIFSIGNALED(status) ? ::strsignal(WTERMSIG(status)) : "it left"));
  return result;
}

}  // namespace sluice::conformance
