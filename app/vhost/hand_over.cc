#include "app/vhost/hand_over.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <csignal>
#include <cstring>

#include "lib/base/log.h"
#include "lib/base/unix_socket.h"
#include "rpc/json.h"

namespace sluice {
namespace {

// The successor has to make all bdevs and controllers in this time, while guests wait.
constexpr int kSuccessorSeconds = 10;
// The predecessor has to finish the calls, messages and requests that it is at; guests are served meanwhile, mostly.
constexpr int kPredecessorSeconds = 60;
constexpr char kReady = 'R';
constexpr char kGo = 'G';

void limit_waits(int socket, int seconds) {
  const timeval limit{.tv_sec = seconds, .tv_usec = 0};
  ::setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
  ::setsockopt(socket, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
}

Result<> send_word(int socket, char word) {
  if (::send(socket, &word, 1, MSG_NOSIGNAL) != 1) return fail_errno("cannot write to the other daemon");
  return {};
}

// 0: the peer has gone.
Result<char> receive_word(int socket) {
  char word = 0;
  ssize_t got = -1;
  do {
    got = ::recv(socket, &word, 1, 0);
  } while (got < 0 && errno == EINTR);
  if (got < 0 && errno == EAGAIN) return fail(ETIMEDOUT, "the other daemon is silent");
  if (got < 0 && errno != ECONNRESET) return fail_errno("cannot read from the other daemon");
  return got == 1 ? word : '\0';
}

std::string text_of(const Error& error) { return fmt::format("{}: {}", error.what, ::strerrordesc_np(error.code)); }

// The call, and what is wrong with its answer; empty if nothing is.
std::string call_hand_over(const std::string& rpc_path, const std::string& socket_path) {
  auto rpc = connect_unix(rpc_path);
  if (!rpc) return text_of(rpc.error());
  limit_waits(rpc->get(), kPredecessorSeconds);
  Json::Value request(Json::objectValue);
  request["id"] = 1;
  request["method"] = "framework_hand_over";
  request["params"]["socket"] = socket_path;
  const std::string text = rpc::write_json(request) + "\n";
  if (::send(rpc->get(), text.data(), text.size(), MSG_NOSIGNAL) != static_cast<ssize_t>(text.size()))
    return "it takes no call";
  std::string reply;
  while (!reply.ends_with('\n')) {
    char chunk[4096];
    const ssize_t got = ::recv(rpc->get(), chunk, sizeof(chunk), 0);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return "it does not answer";
    reply.append(chunk, static_cast<size_t>(got));
  }
  const auto json = rpc::parse_json(reply);
  if (!json || !json->isObject()) return "its answer is not JSON";
  if (!json->isMember("error")) return "";
  const Json::Value& message = (*json)["error"]["message"];
  return message.isString() ? message.asString() : "it refuses";
}

// Once this returns, it has ended, and all that the kernel did for it.
void end_successor(const UniqueFd& successor) {
  ucred peer{};
  socklen_t size = sizeof(peer);
  if (::getsockopt(successor.get(), SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0 || peer.pid <= 0) return;
  log(LogLevel::kError, LogFlag::kApp, "the successor, process {}, is killed", peer.pid);
  ::kill(peer.pid, SIGKILL);
  while (true) {
    const Result<char> word = receive_word(successor.get());
    if (word && *word == '\0') return;
  }
}

}  // namespace

std::expected<UniqueFd, std::string> ask_for_hand_over(const std::string& rpc_path) {
  const std::string path = rpc_path + ".upgrade";
  const auto listener = listen_unix(path, 0600);
  if (!listener) return std::unexpected(fmt::format("{}: {}", path, text_of(listener.error())));
  const std::string complaint = call_hand_over(rpc_path, path);
  ::unlink(path.c_str());
  if (!complaint.empty()) return std::unexpected(fmt::format("{}: {}", rpc_path, complaint));
  // It has connected before it answered.
  UniqueFd predecessor(::accept4(listener->get(), nullptr, nullptr, SOCK_CLOEXEC));
  if (!predecessor) return std::unexpected(fmt::format("{}: {}", path, ::strerrordesc_np(errno)));
  limit_waits(predecessor.get(), kPredecessorSeconds);
  return predecessor;
}

Result<> confirm_hand_over(int predecessor) {
  if (auto sent = send_word(predecessor, kReady); !sent) return sent;
  const auto word = receive_word(predecessor);
  if (!word) return std::unexpected(word.error());
  // One that has ended without a word serves nobody either.
  if (*word != kGo && *word != '\0') return fail(EPROTO, "the other daemon says something else");
  return {};
}

bool pass_on(UniqueFd successor, const rpc::HandOver& hand_over) {
  limit_waits(successor.get(), kSuccessorSeconds);
  Result<> passed = rpc::send_hand_over(successor.get(), hand_over);
  if (passed) {
    const auto word = receive_word(successor.get());
    if (!word) {
      passed = std::unexpected(word.error());
    } else if (*word != kReady) {
      passed = fail(ECONNRESET, "the successor has ended; its log tells why");
    } else {
      passed = send_word(successor.get(), kGo);
    }
  }
  if (passed) return true;
  log(LogLevel::kError, LogFlag::kApp, "nothing is handed over: {}", text_of(passed.error()));
  if (passed.error().code == ETIMEDOUT || passed.error().code == EAGAIN) end_successor(successor);
  return false;
}

}  // namespace sluice
