#include "rpc/server.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <vector>

#include "rpc/json.h"
#include "rpc/limits.h"
#include "test/rpc/test_methods.h"
#include "test/support/manual_host.h"

namespace sluice::rpc {
namespace {

using ::testing::HasSubstr;

// A server on a host that the test turns, and clients in the same thread: what a client sends, the server has not seen
// until the test waits for something.
class ServerTest : public ::testing::Test {
 protected:
  ServerTest() : path_(fmt::format("{}rpc_server_test.{}.sock", ::testing::TempDir(), ::getpid())) {
    test::add_test_methods(table_, event_);
  }
  ~ServerTest() override {
    if (server_ != nullptr) close();
  }

  void serve(size_t max_clients = kMaxClients) {
    auto server = Server::listen({.path = path_, .max_clients = max_clients}, dispatcher_);
    ASSERT_TRUE(server.has_value()) << server.error().what;
    server_ = std::move(*server);
    ASSERT_TRUE(hosts_.on(hosts_.home(), [&] { return server_->start(); }).has_value());
  }
  void close() {
    hosts_.await(hosts_.home(), server_->close());
    server_.reset();
  }

  UniqueFd connect() {
    UniqueFd client(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, path_.c_str(), path_.size() + 1);
    EXPECT_EQ(::connect(client.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0)
        << strerror(errno);
    return client;
  }
  static void send(const UniqueFd& client, std::string_view bytes) {
    EXPECT_EQ(::send(client.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT),
              static_cast<ssize_t>(bytes.size()));
  }
  // What is there after the server had its turn; "" for nothing. `ended` tells the end of the stream.
  std::string read_now(const UniqueFd& client, bool* ended = nullptr) {
    static char chunk[1 << 20];
    std::string text;
    for (;;) {
      const ssize_t count = ::recv(client.get(), chunk, sizeof(chunk), MSG_DONTWAIT);
      if (count > 0) text.append(chunk, static_cast<size_t>(count));
      if (count <= 0) {
        if (ended != nullptr) *ended = count == 0 || errno != EAGAIN;
        return text;
      }
    }
  }
  std::string receive(const UniqueFd& client) {
    std::string text;
    EXPECT_TRUE(hosts_.run_until([&] {
      text += read_now(client);
      return text.ends_with('\n');
    }));
    return text;
  }
  std::string receive_to_end(const UniqueFd& client) {
    std::string text;
    bool ended = false;
    EXPECT_TRUE(hosts_.run_until([&] {
      text += read_now(client, &ended);
      return ended;
    }));
    return text;
  }
  std::string ask(const UniqueFd& client, std::string_view request) {
    send(client, request);
    return receive(client);
  }

  static std::string echo_request(std::string_view text) {
    return fmt::format(R"({{"id":1,"method":"echo","params":{{"text":"{}"}}}})", text);
  }
  static std::string echo_reply(std::string_view text) {
    return fmt::format("{{\"id\":1,\"jsonrpc\":\"2.0\",\"result\":\"{}\"}}\n", text);
  }

  const std::string path_;
  ManualHosts hosts_;
  Event event_;
  MethodTable table_;
  Dispatcher dispatcher_{table_};
  std::unique_ptr<Server> server_;
};

TEST_F(ServerTest, AnswersARequestWithoutNewline) {
  serve();
  const UniqueFd client = connect();
  EXPECT_EQ(ask(client, echo_request("hi")), echo_reply("hi"));
  EXPECT_EQ(ask(client, echo_request("again")), echo_reply("again"));
}

TEST_F(ServerTest, MakesASocketForItsUserOnlyAndRemovesIt) {
  serve();
  struct stat info{};
  ASSERT_EQ(::stat(path_.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600);
  close();
  EXPECT_NE(::stat(path_.c_str(), &info), 0);
}

TEST_F(ServerTest, AnswersRequestsThatArriveInPieces) {
  serve();
  const UniqueFd client = connect();
  for (const char c : echo_request("slow")) {
    EXPECT_EQ(read_now(client), "");
    send(client, {&c, 1});
    hosts_.run_until_idle();
  }
  EXPECT_EQ(receive(client), echo_reply("slow"));
}

TEST_F(ServerTest, AnswersPipelinedRequestsInOrder) {
  serve();
  const UniqueFd client = connect();
  std::string requests;
  std::string replies;
  for (int i = 0; i < 100; ++i) {
    requests += echo_request(fmt::to_string(i));
    replies += echo_reply(fmt::to_string(i));
  }
  send(client, requests);
  std::string received;
  while (received.size() < replies.size()) received += receive(client);
  EXPECT_EQ(received, replies);
}

TEST_F(ServerTest, ServesOthersWhileAMethodWaits) {
  serve();
  const UniqueFd waiting = connect();
  const UniqueFd other = connect();
  send(waiting, R"({"id":1,"method":"wait"})" + echo_request("after"));
  EXPECT_EQ(ask(other, echo_request("other")), echo_reply("other"));
  EXPECT_EQ(read_now(waiting), "") << "in order: the second answer may not pass the first";
  hosts_.on(hosts_.home(), [&] { event_.set(); });
  std::string received;
  while (!received.ends_with(echo_reply("after"))) received += receive(waiting);
  EXPECT_TRUE(received.starts_with("{\"id\":1,\"jsonrpc\":\"2.0\",\"result\":true}\n"));
}

TEST_F(ServerTest, AnswersWhatAClientSentBeforeItEndedItsSide) {
  serve();
  const UniqueFd client = connect();
  send(client, echo_request("a") + echo_request("b"));
  ASSERT_EQ(::shutdown(client.get(), SHUT_WR), 0);
  EXPECT_EQ(receive_to_end(client), echo_reply("a") + echo_reply("b"));
}

TEST_F(ServerTest, SaysThatTheStreamEndedWithinARequest) {
  serve();
  const UniqueFd client = connect();
  send(client, R"({"id":1)");
  ASSERT_EQ(::shutdown(client.get(), SHUT_WR), 0);
  EXPECT_THAT(receive_to_end(client), HasSubstr("-32700"));
}

TEST_F(ServerTest, GoesOnAfterARequestThatDoesNotParse) {
  serve();
  const UniqueFd client = connect();
  EXPECT_THAT(ask(client, "{oops}"), HasSubstr("-32700"));
  EXPECT_EQ(ask(client, echo_request("fine")), echo_reply("fine"));
}

TEST_F(ServerTest, EndsAStreamThatItCannotFollow) {
  serve();
  const UniqueFd client = connect();
  send(client, "GET / HTTP/1.1\r\n\r\n");
  EXPECT_THAT(receive_to_end(client), HasSubstr("-32700"));
}

TEST_F(ServerTest, EndsAStreamWithATooLongRequestAndNamesTheLimit) {
  serve();
  const UniqueFd client = connect();
  std::string received;
  bool ended = false;
  const std::string piece(16384, 'x');
  send(client, R"({"method":")");
  EXPECT_TRUE(hosts_.run_until([&] {
    static_cast<void>(::send(client.get(), piece.data(), piece.size(), MSG_NOSIGNAL | MSG_DONTWAIT));
    received += read_now(client, &ended);
    return ended;
  }));
  EXPECT_THAT(received, HasSubstr("-32600"));
  EXPECT_THAT(received, HasSubstr("1048576"));
  EXPECT_EQ(server_->clients(), 0);
}

TEST_F(ServerTest, SendsRepliesThatAreLongerThanTheSocketsBuffer) {
  serve();
  const UniqueFd client = connect();
  const std::string text(900'000, 'x');
  std::string request = echo_request(text);
  std::string received;
  EXPECT_TRUE(hosts_.run_until([&] {
    const ssize_t sent = ::send(client.get(), request.data(), request.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent > 0) request.erase(0, static_cast<size_t>(sent));
    received += read_now(client);
    return received.ends_with('\n');
  }));
  EXPECT_EQ(received, echo_reply(text));
}

TEST_F(ServerTest, ForgetsClientsThatGo) {
  serve();
  {
    const UniqueFd idle = connect();
    const UniqueFd calling = connect();
    EXPECT_EQ(ask(idle, echo_request("a")), echo_reply("a"));
    send(calling, R"({"id":1,"method":"wait"})");
    hosts_.run_until_idle();
    EXPECT_EQ(server_->clients(), 2);
  }
  EXPECT_TRUE(hosts_.run_until([&] { return server_->clients() == 1; })) << "the one whose method still runs";
  hosts_.on(hosts_.home(), [&] { event_.set(); });
  EXPECT_TRUE(hosts_.run_until([&] { return server_->clients() == 0; }));
}

TEST_F(ServerTest, DropsAClientThatNeverReads) {
  serve();
  const UniqueFd client = connect();
  // Requests until the server takes no more: it holds one reply and does not read on.
  const std::string request = echo_request(std::string(30'000, 'x'));
  size_t sent = 0;
  for (int quiet = 0; quiet < 100;) {
    const ssize_t count = ::send(client.get(), request.data(), request.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (count > 0) {
      sent += static_cast<size_t>(count);
      quiet = 0;
      ASSERT_LT(sent, 8 << 20) << "the server takes everything from a client that never reads";
      // A request cut short by the full socket would be garbage; it is never looked at.
      if (static_cast<size_t>(count) < request.size()) break;
    } else {
      ++quiet;
    }
    hosts_.run_until_idle();
  }
  EXPECT_EQ(server_->clients(), 1);
  hosts_.advance(kWriteTimeoutNs);
  EXPECT_TRUE(hosts_.run_until([&] { return server_->clients() == 0; }));
}

TEST_F(ServerTest, RefusesClientsBeyondTheLimitAndSaysSo) {
  serve(2);
  const UniqueFd first = connect();
  const UniqueFd second = connect();
  EXPECT_EQ(ask(first, echo_request("1")), echo_reply("1"));
  EXPECT_EQ(ask(second, echo_request("2")), echo_reply("2"));
  const UniqueFd third = connect();
  EXPECT_THAT(receive_to_end(third), HasSubstr("2 clients are connected"));
  EXPECT_EQ(ask(first, echo_request("still")), echo_reply("still"));
}

TEST_F(ServerTest, AcceptsAgainOnceDescriptorsAreBack) {
#if __has_feature(undefined_behavior_sanitizer)
  GTEST_SKIP() << "UndefinedBehaviorSanitizer itself needs descriptors, to look at objects";
#endif
  serve();
  const UniqueFd client = connect();
  rlimit limit{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &limit), 0);
  const rlimit none{.rlim_cur = 3, .rlim_max = limit.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &none), 0);
  hosts_.run_until_idle();
  EXPECT_EQ(server_->clients(), 0);
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &limit), 0);
  hosts_.run_until_idle();
  EXPECT_EQ(server_->clients(), 0) << "it does not spin, it looks again later";
  hosts_.advance(kAcceptRetryNs);
  EXPECT_EQ(ask(client, echo_request("a")), echo_reply("a"));
}

TEST_F(ServerTest, AnswersRunningCallsBeforeItCloses) {
  serve();
  const UniqueFd idle = connect();
  const UniqueFd calling = connect();
  EXPECT_EQ(ask(idle, echo_request("a")), echo_reply("a"));
  send(calling, R"({"id":1,"method":"wait"})" + echo_request("never"));
  hosts_.run_until_idle();
  bool closed = false;
  hosts_.on(hosts_.home(), [&] { sluice::start(server_->close(), [&] { closed = true; }); });
  hosts_.run_until_idle();
  EXPECT_FALSE(closed);
  EXPECT_EQ(receive_to_end(idle), "");
  hosts_.on(hosts_.home(), [&] { event_.set(); });
  EXPECT_EQ(receive_to_end(calling), "{\"id\":1,\"jsonrpc\":\"2.0\",\"result\":true}\n");
  EXPECT_TRUE(closed);
  server_.reset();
}

TEST_F(ServerTest, DoesNotTakeASocketThatIsInUse) {
  serve();
  const auto second = Server::listen({.path = path_}, dispatcher_);
  ASSERT_FALSE(second.has_value());
  EXPECT_EQ(second.error().code, EADDRINUSE);
  EXPECT_EQ(ask(connect(), echo_request("a")), echo_reply("a"));
}

TEST_F(ServerTest, RefusesAPathThatFitsNoAddress) {
  const auto server = Server::listen({.path = "/tmp/" + std::string(120, 'x')}, dispatcher_);
  ASSERT_FALSE(server.has_value());
  EXPECT_EQ(server.error().code, ENAMETOOLONG);
}

}  // namespace
}  // namespace sluice::rpc
