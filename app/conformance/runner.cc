#include "app/conformance/runner.h"

#include <fnmatch.h>
#include <sys/socket.h>
#include <unistd.h>

#include <optional>

#include "app/conformance/isolated.h"
#include "app/conformance/target_fixture.h"

namespace sluice::conformance {
namespace {

// A target that serves one front end at a time may have to find out first that the last one has gone.
constexpr int kAnswerMs = 5000;

class ExternalTarget final : public test::TestedTarget {
 public:
  ExternalTarget(std::string path, bool readonly) : path_(std::move(path)), readonly_(readonly) {}
  std::string socket_path(unsigned controller) const override { return controller == 0 ? path_ : std::string(); }
  bool readonly() const override { return readonly_; }

 private:
  std::string path_;
  bool readonly_;
};

// GoogleTest makes the fixtures, so what the target is cannot be handed down to them.
std::optional<ExternalTarget> tested_target;

// "Instance/VhostSuite.Case/Parameter" without what is only GoogleTest's and ours.
std::string name_of(std::string test) {
  const size_t dot = test.find('.');
  const size_t slash = test.find('/');
  if (slash < dot) test.erase(0, slash + 1);
  if (test.starts_with("Vhost")) test.erase(0, 5);
  return test;
}

bool matches(const std::string& name, const std::string& only) {
  if (only.find_first_of("*?") == only.npos) return name.find(only) != name.npos;
  return ::fnmatch(only.c_str(), name.c_str(), 0) == 0;
}

struct Presence {
  bool answers = false;
  int pid = 0;
  std::string why;
};

// Who listens, and whether GET_FEATURES is answered in time.
Presence look(const std::string& socket_path, int timeout_ms) {
  Presence presence;
  const test::Deadline deadline(timeout_ms);
  do {
    test::FrontEnd front_end;
    if (front_end.connect(socket_path)) {
      ucred peer{};
      socklen_t size = sizeof(peer);
      if (::getsockopt(front_end.channel().fd(), SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0) presence.pid = peer.pid;
      presence.answers = front_end.get_u64(vhost::Request::kGetFeatures).has_value();
      if (presence.answers) return presence;
    }
    presence.why = front_end.error();
    ::usleep(20'000);
  } while (!deadline.passed());
  return presence;
}

}  // namespace

std::vector<Case> list_cases(const std::string& only) {
  std::vector<Case> cases;
  const auto& unit_test = *testing::UnitTest::GetInstance();
  for (int i = 0; i < unit_test.total_test_suite_count(); i++) {
    const auto& suite = *unit_test.GetTestSuite(i);
    for (int j = 0; j < suite.total_test_count(); j++) {
      const std::string test = std::string(suite.name()) + "." + suite.GetTestInfo(j)->name();
      Case one{.test = test, .name = name_of(test), .section = test::section_of(test)};
      if (!one.section.empty() && matches(one.name, only)) cases.push_back(std::move(one));
    }
  }
  return cases;
}

bool ask(const std::string& socket_path, TargetInfo& info, std::string& why) {
  const Presence presence = look(socket_path, kAnswerMs);
  if (!presence.answers) {
    why = presence.why;
    return false;
  }
  info = {.socket_path = socket_path, .pid = presence.pid};
  test::Session session;
  session.open(socket_path);  // as far as it goes: what does not work is found by the cases
  info.features = session.offered();
  if ((info.features & vhost::kFeatureProtocolFeatures) != 0)
    info.protocol_features = session.front_end().get_u64(vhost::Request::kGetProtocolFeatures).value_or(0);
  info.num_queues = session.max_queues();
  info.capacity_bytes = session.config().capacity * vhost::kSectorSize;
  info.block_size = session.config().blk_size;
  return true;
}

void run_cases(const std::vector<Case>& cases, const Options& options, const TargetInfo& info,
               const std::function<void(const CaseResult&)>& done) {
  tested_target.emplace(options.socket_path, (info.features & vhost::kBlkFeatureRo) != 0);
  int pid = info.pid;
  bool gone = false;
  for (const Case& one : cases) {
    CaseResult result;
    if (!gone) {
      const test::Deadline start(INT32_MAX);
      result = run_isolated(one.test, options.time_limit_s * 1000);
      result.duration_ms = INT32_MAX - start.left_ms();
      Presence presence = look(options.socket_path, kAnswerMs);
      if (!presence.answers || presence.pid != pid) {
        result.status = Status::kCrashed;
        result.messages.push_back(presence.answers
                                      ? "another process listens now: the target has ended, and was started anew"
                                      : "the target has gone or hangs: " + presence.why);
        if (!presence.answers) presence = look(options.socket_path, options.wait_s * 1000);
        gone = !presence.answers;
        pid = presence.pid;
      }
    } else {
      result.messages = {"the target has gone, and did not come back"};
    }
    result.name = one.name;
    result.section = one.section;
    done(result);
  }
}

}  // namespace sluice::conformance

namespace sluice::test {

std::unique_ptr<TestedTarget> make_target(const TargetOptions&) {
  return std::make_unique<conformance::ExternalTarget>(*conformance::tested_target);
}

}  // namespace sluice::test
