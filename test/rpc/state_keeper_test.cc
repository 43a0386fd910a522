#include "rpc/state_keeper.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "lib/bdev/blocking_pool.h"
#include "rpc/dispatcher.h"
#include "rpc/json.h"
#include "rpc/state_journal.h"
#include "test/rpc/state_fixture.h"
#include "test/support/manual_host.h"

namespace sluice::rpc {
namespace {

using test::FailingSystem;
using test::TempDirectory;
using ::testing::AllOf;
using ::testing::HasSubstr;

struct Put {
  std::string name;
  std::string text;
};
struct Drop {
  std::string name;
};

// Names with texts: "put" makes one or changes it, "drop" removes it; both can be told to fail. A text with a plus
// takes two calls to make.
class Things final : public StateObjects {
 public:
  void add_methods(MethodTable& table) {
    table.add(make_method<Put>({"put", "Makes a thing.", kTrue, changes(StateKind::kBdev, "name")},
                               {required("name", &Put::name, "its name"), optional("text", &Put::text, "its text")},
                               [this](Put params) { return put(std::move(params)); }));
    table.add(make_method<Drop>({"drop", "Removes a thing.", kTrue, removes(StateKind::kBdev, "name")},
                                {required("name", &Drop::name, "its name")},
                                [this](Drop params) { return drop(std::move(params)); }));
  }

  std::string name_of(StateKind, const std::string& name) const override { return name; }
  Task<std::vector<StateObject>> describe(StateKind kind, std::string name) override {
    ++described;
    std::vector<StateObject> objects;
    for (const auto& [key, text] : things) {
      if (kind != StateKind::kBdev || (!name.empty() && name != key)) continue;
      objects.push_back({.name = key});
      if (const size_t plus = text.find('+'); plus != std::string::npos)
        add_put(objects.back().calls, key, text.substr(0, plus));
      add_put(objects.back().calls, key, text);
    }
    co_return objects;
  }

  std::map<std::string, std::string> things;
  uint64_t calls = 0;
  uint64_t described = 0;
  std::string refused;  // a name that cannot be made, or a text

 private:
  static void add_put(Json::Value& calls, const std::string& name, const std::string& text) {
    Json::Value& call = calls.append(Json::Value(Json::objectValue));
    call["method"] = "put";
    call["params"]["name"] = name;
    call["params"]["text"] = text;
  }
  Task<RpcResult> put(Put params) {
    ++calls;
    if (!refused.empty() && (params.name == refused || params.text == refused))
      co_return fail_rpc(ENOENT, "its file is missing");
    things[params.name] = params.text;
    co_return true;
  }
  Task<RpcResult> drop(Drop params) {
    ++calls;
    if (things.erase(params.name) == 0) co_return fail_rpc(ENODEV, "there is none");
    co_return true;
  }
};

class StateKeeperTest : public ::testing::Test {
 protected:
  // A daemon, from its start to kill -9.
  struct Daemon {
    Daemon(const TempDirectory& directory, FailingSystem& system, ManualHosts& hosts, Things& state)
        : journal(std::move(*StateJournal::open(directory.path(), system))), run_by(hosts), things(state) {
      things.add_methods(methods);
      EXPECT_TRUE(keeper.load().has_value());
      if (!keeper.first_start()) run_by.await(run_by.home(), keeper.restore());
      started = run_by.await(run_by.home(), keeper.start());
    }
    ~Daemon() { run_by.await(run_by.home(), keeper.close()); }

    std::unique_ptr<StateJournal> journal;
    ManualHosts& run_by;
    Things& things;
    BlockingPool pool;
    MethodTable methods;
    StateKeeper keeper{*journal, pool, methods, things};
    Dispatcher dispatcher{methods, &keeper};
    std::expected<void, RpcError> started;

    Json::Value ask(const std::string& text) {
      return *parse_json(run_by.await(run_by.home(), dispatcher.handle(text)));
    }
    // The error's code; 0 if there is none.
    int put(const std::string& name, const std::string& text = "") { return code(request("put", name, text)); }
    int drop(const std::string& name) { return code(request("drop", name)); }
    int code(const std::string& text) {
      const Json::Value reply = ask(text);
      message = reply["error"]["message"].asString();
      return reply["error"]["code"].asInt();
    }
    static std::string request(const std::string& method, const std::string& name, const std::string& text = "") {
      Json::Value json(Json::objectValue);
      json["method"] = method;
      json["params"]["name"] = name;
      if (!text.empty()) json["params"]["text"] = text;
      return write_json(json);
    }
    std::string message;
  };

  std::unique_ptr<Daemon> daemon() {
    things_ = {};
    return std::make_unique<Daemon>(directory_, system_, hosts_, things_);
  }

  TempDirectory directory_;
  FailingSystem system_;
  ManualHosts hosts_;
  Things things_;
  using Content = std::map<std::string, std::string>;
};

TEST_F(StateKeeperTest, MakesAgainWhatWasThere) {
  {
    auto first = daemon();
    EXPECT_EQ(first->put("a", "1"), 0);
    EXPECT_EQ(first->put("b", "2"), 0);
    EXPECT_EQ(first->put("a", "3"), 0);
    EXPECT_EQ(first->put("c"), 0);
    EXPECT_EQ(first->drop("c"), 0);
  }
  auto second = daemon();
  EXPECT_EQ(things_.things, (Content{{"a", "3"}, {"b", "2"}}));
  EXPECT_EQ(things_.calls, 2) << "what there was, not how it came about";
  EXPECT_EQ(second->keeper.info().objects, 2);
}

TEST_F(StateKeeperTest, WritesNothingWhenNothingHasChanged) {
  auto first = daemon();
  EXPECT_EQ(first->put("a", "1"), 0);
  const uint64_t calls = system_.calls;
  EXPECT_EQ(first->put("a", "1"), 0);
  EXPECT_EQ(first->drop("b"), -ENODEV);
  EXPECT_EQ(system_.calls, calls);
}

TEST_F(StateKeeperTest, FlushesOnceForTheCallsOfABatch) {
  auto first = daemon();
  std::string batch;
  for (int i = 0; i < 128; ++i) batch += (i == 0 ? "[" : ",") + Daemon::request("put", std::to_string(i));
  const uint64_t writes = first->keeper.info().writes;
  EXPECT_EQ(first->ask(batch + "]").size(), 128);
  EXPECT_EQ(first->keeper.info().writes - writes, 1);
}

TEST_F(StateKeeperTest, RefusesCallsThatHaveDoneNothingWhenTheDiskIsFull) {
  auto first = daemon();
  system_.full = true;
  EXPECT_EQ(first->put("a", std::string(1'000'000, 'x')), -ENOSPC);
  EXPECT_THAT(first->message, AllOf(HasSubstr("put: nothing was done, as it could not be kept"),
                                    HasSubstr(directory_.journal()), HasSubstr("No space left on device")));
  EXPECT_EQ(things_.calls, 0);
  system_.full = false;
  EXPECT_EQ(first->put("a"), 0);
}

TEST_F(StateKeeperTest, SaysWhatIsInEffectButNotKeptAndKeepsItWhenItCan) {
  auto first = daemon();
  EXPECT_EQ(first->put("a", "1"), 0);
  system_.fail_at = system_.calls;
  system_.failures = FailingSystem::kNever;
  system_.error = EIO;
  EXPECT_EQ(first->put("b", "2"), -EIO);
  EXPECT_THAT(first->message,
              AllOf(HasSubstr("put: it is done, but could not be kept"), HasSubstr("a restart undoes")));
  EXPECT_EQ(things_.things.size(), 2);
  const uint64_t calls = things_.calls;
  EXPECT_EQ(first->put("c"), -EIO);
  EXPECT_THAT(first->message, HasSubstr("nothing was done"));
  EXPECT_EQ(things_.calls, calls);
  EXPECT_THAT(first->keeper.info().error, HasSubstr("Input/output error"));
  system_.fail_at = FailingSystem::kNever;
  EXPECT_EQ(first->put("d"), 0);
  EXPECT_EQ(first->keeper.info().error, "");
  first.reset();
  auto second = daemon();
  EXPECT_EQ(things_.things, (Content{{"a", "1"}, {"b", "2"}, {"d", ""}}));
}

// A batch: each call that has changed something says so.
TEST_F(StateKeeperTest, FailsEachCallOfABatchThatIsNotKept) {
  auto first = daemon();
  EXPECT_EQ(first->put("x"), 0);
  system_.fail_at = system_.calls;
  system_.failures = FailingSystem::kNever;
  const Json::Value replies = first->ask("[" + Daemon::request("put", "a") + "," + Daemon::request("drop", "none") +
                                         "," + R"({"method":"no"})" + "]");
  EXPECT_EQ(replies[0]["error"]["code"].asInt(), -ENOSPC);
  EXPECT_EQ(replies[2]["error"]["code"].asInt(), kMethodNotFound);
}

// Whichever call to the system fails: what was answered is there after a restart, and what is there was asked for.
TEST_F(StateKeeperTest, KeepsItsPromiseWhicheverCallFails) {
  for (const uint64_t failures : {uint64_t{1}, uint64_t{3}, FailingSystem::kNever}) {
    for (uint64_t fail_at = 0;; ++fail_at) {
      std::filesystem::remove(directory_.journal());
      system_ = {};
      Content sure;
      std::set<std::string> doubtful;
      bool failed = false;
      {
        auto first = daemon();
        system_.calls = 0;
        system_.fail_at = fail_at;
        system_.failures = failures;
        const auto note = [&](const std::string& name, int code) {
          if (code == 0) {
            doubtful.clear();  // all before it is kept as well
            sure = things_.things;
          } else {
            failed = true;
            doubtful.insert(name);
          }
        };
        for (const char* name : {"a", "b", "c"}) note(name, first->put(name, "1"));
        note("b", first->drop("b"));
        note("a", first->put("a", "2"));
      }
      const bool reached = system_.calls > fail_at;
      system_.fail_at = FailingSystem::kNever;
      auto second = daemon();
      for (const char* name : {"a", "b", "c"}) {
        if (doubtful.contains(name)) continue;
        EXPECT_EQ(things_.things.contains(name), sure.contains(name)) << name << " " << fail_at;
        if (sure.contains(name)) EXPECT_EQ(things_.things[name], sure[name]) << name << " " << fail_at;
      }
      EXPECT_TRUE(reached || !failed);
      if (!reached) break;
    }
  }
}

TEST_F(StateKeeperTest, KeepsWhatCannotBeMadeAgain) {
  {
    auto first = daemon();
    EXPECT_EQ(first->put("a", "1"), 0);
    EXPECT_EQ(first->put("b", "2"), 0);
  }
  for (int start = 0; start < 2; ++start) {
    things_ = {};
    things_.refused = "a";
    Daemon next(directory_, system_, hosts_, things_);
    EXPECT_EQ(things_.things, (Content{{"b", "2"}}));
    const StateKeeper::Info info = next.keeper.info();
    ASSERT_EQ(info.failures.size(), 1);
    EXPECT_EQ(info.failures[0].name, "a");
    EXPECT_THAT(info.failures[0].error, HasSubstr("put: its file is missing"));
    EXPECT_EQ(next.put("a", "new"), -ENOENT);
    EXPECT_EQ(next.keeper.info().failures.size(), 1);
    things_.refused = "";
    if (start == 0) continue;
    EXPECT_EQ(hosts_.await(hosts_.home(), next.keeper.retry()), 1);
    EXPECT_TRUE(hosts_.await(hosts_.home(), next.keeper.settle()).has_value());
    EXPECT_EQ(things_.things, (Content{{"a", "1"}, {"b", "2"}}));
    EXPECT_TRUE(next.keeper.info().failures.empty());
  }
}

TEST_F(StateKeeperTest, NamesWhatIsMadeAgainInPart) {
  {
    auto first = daemon();
    EXPECT_EQ(first->put("a", "1+2"), 0);
    EXPECT_EQ(first->keeper.half_made(), "");
  }
  things_ = {};
  things_.refused = "1+2";
  Daemon next(directory_, system_, hosts_, things_);
  EXPECT_EQ(things_.things, (Content{{"a", "1"}}));
  EXPECT_THAT(next.keeper.half_made(), HasSubstr("a"));
  things_.refused = "";
  EXPECT_EQ(hosts_.await(hosts_.home(), next.keeper.retry()), 1);
  EXPECT_TRUE(hosts_.await(hosts_.home(), next.keeper.settle()).has_value());
  EXPECT_EQ(things_.things, (Content{{"a", "1+2"}}));
  EXPECT_EQ(next.keeper.half_made(), "");
}

TEST_F(StateKeeperTest, DropsWhatCannotBeMadeAgainWhenItIsDeleted) {
  {
    auto first = daemon();
    EXPECT_EQ(first->put("a", "1"), 0);
  }
  {
    things_ = {};
    things_.refused = "a";
    Daemon second(directory_, system_, hosts_, things_);
    EXPECT_EQ(second.drop("a"), 0) << "there was something to delete";
    EXPECT_EQ(second.drop("a"), -ENODEV);
  }
  auto third = daemon();
  EXPECT_EQ(things_.calls, 0);
}

TEST_F(StateKeeperTest, WritesTheFileAnewWhenItHasGrown) {
  auto first = daemon();
  const std::string text(100'000, 'x');
  for (int i = 0; i < 40; ++i) EXPECT_EQ(first->put("a", text + std::to_string(i)), 0);
  EXPECT_LT(first->keeper.info().size_bytes, 2'000'000);
  first.reset();
  auto second = daemon();
  EXPECT_EQ(things_.things["a"], text + "39");
}

TEST_F(StateKeeperTest, NamesALineThatItCannotUnderstand) {
  {
    auto first = daemon();
    EXPECT_EQ(first->put("a", "1"), 0);
  }
  for (const char* line : {"no JSON", "{}", "[1]", R"([{"kind":"bdev"}])", R"([{"kind":"moon","name":"a"}])",
                           R"([{"kind":"bdev","name":"a","calls":[1]}])"}) {
    {
      auto journal = StateJournal::open(directory_.path());
      ASSERT_TRUE((*journal)->replace({"[]", line}));
    }
    auto journal = StateJournal::open(directory_.path());
    BlockingPool pool;
    MethodTable methods;
    StateKeeper keeper(**journal, pool, methods, things_);
    const auto loaded = keeper.load();
    ASSERT_FALSE(loaded.has_value()) << line;
    EXPECT_THAT(loaded.error(), AllOf(HasSubstr(directory_.journal() + ", line 3: "), HasSubstr("sed -i '3s/^/#/' ")));
  }
}

}  // namespace
}  // namespace sluice::rpc
