#include "lib/base/unix_socket.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>

namespace sluice {
namespace {

// A folder of its own, gone after the test; the umask is as before, too.
class UnixSocket : public testing::Test {
 protected:
  UnixSocket() {
    std::string name = std::filesystem::temp_directory_path() / "sluice_test_XXXXXX";
    folder_ = ::mkdtemp(name.data());
    path_ = folder_ / "socket";
  }
  ~UnixSocket() override {
    ::umask(umask_);
    std::filesystem::remove_all(folder_);
  }

  static sockaddr_un address_of(const std::string& path) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, path.c_str(), sizeof(address.sun_path) - 1);
    return address;
  }
  static UniqueFd connect_to(const std::string& path) {
    UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    const sockaddr_un address = address_of(path);
    if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) fd.reset();
    return fd;
  }
  static int refusal(const std::string& path) {
    const Result<UniqueFd> made = listen_unix(path, 0600);
    return made ? 0 : made.error().code;
  }
  static mode_t mode_of(const std::string& path) {
    struct stat status{};
    EXPECT_EQ(::lstat(path.c_str(), &status), 0);
    return status.st_mode & 07777;
  }

  std::filesystem::path folder_;
  std::string path_;
  const mode_t umask_ = ::umask(022);
};

TEST_F(UnixSocket, TakesConnectionsOnANonBlockingCloseOnExecSocket) {
  const Result<UniqueFd> listener = listen_unix(path_, 0600);
  ASSERT_TRUE(listener.has_value());
  EXPECT_NE(::fcntl(listener->get(), F_GETFL) & O_NONBLOCK, 0);
  EXPECT_NE(::fcntl(listener->get(), F_GETFD) & FD_CLOEXEC, 0);
  EXPECT_EQ(::accept(listener->get(), nullptr, nullptr), -1);
  EXPECT_EQ(errno, EAGAIN);
  const UniqueFd client = connect_to(path_);
  EXPECT_TRUE(client);
  EXPECT_TRUE(UniqueFd(::accept(listener->get(), nullptr, nullptr)));
}

TEST_F(UnixSocket, NeverTakesALiveSocketFromItsOwner) {
  const Result<UniqueFd> owner = listen_unix(path_, 0600);
  ASSERT_TRUE(owner.has_value());
  EXPECT_EQ(refusal(path_), EADDRINUSE);
  // The probe's own connection is all that the owner sees; the socket still works.
  EXPECT_TRUE(UniqueFd(::accept(owner->get(), nullptr, nullptr)));
  const UniqueFd client = connect_to(path_);
  EXPECT_TRUE(client);
}

TEST_F(UnixSocket, NeverTakesALiveSocketWhoseBacklogIsFull) {
  const UniqueFd owner(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const sockaddr_un address = address_of(path_);
  ASSERT_EQ(::bind(owner.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
  ASSERT_EQ(::listen(owner.get(), 0), 0);
  std::vector<UniqueFd> waiting;
  while (UniqueFd client = connect_to(path_)) waiting.push_back(std::move(client));
  EXPECT_EQ(refusal(path_), EADDRINUSE);
  EXPECT_TRUE(std::filesystem::exists(path_));
}

TEST_F(UnixSocket, ReplacesASocketThatNobodyListensOn) {
  {
    ASSERT_TRUE(listen_unix(path_, 0600).has_value());
  }
  ASSERT_TRUE(std::filesystem::is_socket(path_)) << "closing leaves the file";
  const Result<UniqueFd> listener = listen_unix(path_, 0600);
  ASSERT_TRUE(listener.has_value());
  const UniqueFd client = connect_to(path_);
  EXPECT_TRUE(client);
}

TEST_F(UnixSocket, RefusesAPathThatIsNotASocketAndLeavesItAlone) {
  std::ofstream(path_) << "precious";
  EXPECT_EQ(refusal(path_), EADDRINUSE);
  EXPECT_EQ(std::filesystem::file_size(path_), 8U);

  const std::string folder = folder_ / "folder";
  std::filesystem::create_directory(folder);
  EXPECT_EQ(refusal(folder), EADDRINUSE);
  EXPECT_TRUE(std::filesystem::is_directory(folder));
}

TEST_F(UnixSocket, DoesNotFollowASymbolicLink) {
  const std::string target = folder_ / "target";
  {
    ASSERT_TRUE(listen_unix(target, 0600).has_value());
  }
  std::filesystem::create_symlink(target, path_);
  EXPECT_EQ(refusal(path_), EADDRINUSE);
  EXPECT_TRUE(std::filesystem::is_socket(target));

  const std::string dangling = folder_ / "dangling";
  std::filesystem::create_symlink(folder_ / "nowhere", dangling);
  EXPECT_EQ(refusal(dangling), EADDRINUSE);
  EXPECT_FALSE(std::filesystem::exists(folder_ / "nowhere"));
}

TEST_F(UnixSocket, RefusesAPathThatDoesNotFitAnAddress) {
  constexpr size_t kMaxPath = sizeof(sockaddr_un::sun_path) - 1;
  const std::string prefix = folder_.string() + "/";
  const std::string longest = prefix + std::string(kMaxPath - prefix.size(), 'x');
  EXPECT_EQ(refusal(longest), 0);
  EXPECT_EQ(refusal(longest + "x"), ENAMETOOLONG);
  EXPECT_FALSE(std::filesystem::exists(longest + "x"));
  EXPECT_EQ(refusal(""), EINVAL);
}

TEST_F(UnixSocket, TellsWhyThePathCannotBeUsed) { EXPECT_EQ(refusal(folder_ / "missing" / "socket"), ENOENT); }

TEST_F(UnixSocket, IsConnectedToByABlockingCloseOnExecSocket) {
  const auto listener = listen_unix(path_, 0600);
  ASSERT_TRUE(listener);
  const auto socket = connect_unix(path_);
  ASSERT_TRUE(socket);
  EXPECT_EQ(::fcntl(socket->get(), F_GETFL) & O_NONBLOCK, 0);
  EXPECT_EQ(::fcntl(socket->get(), F_GETFD), FD_CLOEXEC);
  EXPECT_TRUE(UniqueFd(::accept4(listener->get(), nullptr, nullptr, SOCK_CLOEXEC)));
}

TEST_F(UnixSocket, TellsWhyThereIsNobodyToConnectTo) {
  const auto code = [](const std::string& path) {
    const auto socket = connect_unix(path);
    return socket ? 0 : socket.error().code;
  };
  EXPECT_EQ(code(path_), ENOENT);
  EXPECT_EQ(code(""), EINVAL);
  EXPECT_EQ(code(std::string(200, 'x')), ENAMETOOLONG);
}

TEST_F(UnixSocket, HasExactlyItsModeWhateverTheUmask) {
  for (const mode_t mask : {0000U, 0022U, 0077U, 0777U}) {
    ::umask(mask);
    for (const mode_t mode : {0600U, 0660U, 0666U, 0777U, 0000U}) {
      const std::string path = folder_ / std::to_string(mask * 512 + mode);
      const Result<UniqueFd> listener = listen_unix(path, mode);
      ASSERT_TRUE(listener.has_value()) << std::oct << mask << ' ' << mode;
      EXPECT_EQ(mode_of(path), mode) << std::oct << mask;
    }
  }
}

// An observer that looks all the time: it may miss a moment, but what it sees is true.
TEST_F(UnixSocket, IsNeverSeenWithAWiderMode) {
  ::umask(0);
  std::atomic<bool> stop = false;
  std::atomic<mode_t> seen = 0;
  std::thread observer([&] {
    while (!stop) {
      struct stat status{};
      if (::lstat(path_.c_str(), &status) == 0) seen |= status.st_mode & 07777;
    }
  });
  for (int i = 0; i < 500; ++i) {
    const Result<UniqueFd> listener = listen_unix(path_, 0600);
    EXPECT_TRUE(listener.has_value());
    ::unlink(path_.c_str());
  }
  stop = true;
  observer.join();
  EXPECT_EQ(seen & ~mode_t{0600}, 0U) << std::oct << seen;
}

TEST_F(UnixSocket, TellsWhoHasConnected) {
  const auto listener = listen_unix(path_, 0600);
  ASSERT_TRUE(listener);
  const UniqueFd client = connect_to(path_);
  const UniqueFd accepted(::accept(listener->get(), nullptr, nullptr));
  const auto peer = peer_credentials(accepted.get());
  ASSERT_TRUE(peer);
  EXPECT_EQ(peer->pid, ::getpid());
  EXPECT_EQ(peer->uid, ::getuid());
  std::vector<gid_t> groups(static_cast<size_t>(::getgroups(0, nullptr)));
  ASSERT_EQ(::getgroups(static_cast<int>(groups.size()), groups.data()), static_cast<int>(groups.size()));
  groups.insert(groups.begin(), ::getgid());
  EXPECT_EQ(peer->gids, groups);
}

}  // namespace
}  // namespace sluice
