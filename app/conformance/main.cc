// sluice-conformance: tries a vhost-user-blk back end, any, against the specifications. See docs/conformance.md.
#include <gmock/gmock.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>

#include "app/conformance/report.h"
#include "app/conformance/runner.h"

int main(int argc, char** argv) {
  using namespace sluice::conformance;
  Options options;
  bool json = false;
  bool list = false;
  CLI::App app(
      "Tries the vhost-user-blk back end that listens on a socket, case by case. It must have no other front end, and "
      "what is on its disk is OVERWRITTEN. Exits with 0 if nothing failed, 1 if something did, 2 if nothing could be "
      "tried.",
      "sluice-conformance");
  app.add_option("socket", options.socket_path, "the vhost-user-blk socket");
  app.add_flag("--json", json, "print the results as JSON, at the end");
  app.add_flag("--list", list, "print the cases, and the section of the specification that each is about");
  app.add_option("--only", options.only, "cases whose name has this in it, or is like this with * and ?");
  app.add_option("--timeout", options.time_limit_s, "seconds that one case may take")
      ->check(CLI::Range(1, 3600))
      ->capture_default_str();
  app.add_option("--wait", options.wait_s, "seconds to wait for a target that has gone, before the rest is given up")
      ->check(CLI::Range(0, 3600))
      ->capture_default_str();
  try {
    app.parse(argc, argv);
    if (!list && options.socket_path.empty()) throw CLI::RequiredError("socket");
  } catch (const CLI::Success& help) {
    return app.exit(help);
  } catch (const CLI::ParseError& error) {
    std::fprintf(stderr, "sluice-conformance: %s (sluice-conformance --help lists the options)\n", error.what());
    return 2;
  }

  int no_arguments = 1;
  testing::InitGoogleMock(&no_arguments, argv);
  const std::vector<Case> cases = list_cases(options.only);
  if (cases.empty()) {
    std::fprintf(stderr, "sluice-conformance: no case is named like %s (--list prints them)\n", options.only.c_str());
    return 2;
  }
  if (list) {
    for (const Case& one : cases) std::printf("%s\t%s\n", one.name.c_str(), one.section.c_str());
    return 0;
  }

  TargetInfo info;
  std::string why;
  if (!ask(options.socket_path, info, why)) {
    std::fprintf(stderr, "sluice-conformance: no back end answers on %s: %s (start it first, without a guest)\n",
                 options.socket_path.c_str(), why.c_str());
    return 2;
  }
  if (!json) std::fputs(text_of(info).c_str(), stdout);
  std::vector<CaseResult> results;
  run_cases(cases, options, info, [&](const CaseResult& result) {
    results.push_back(result);
    if (!json) std::fputs(text_of(result).c_str(), stdout);
    std::fflush(stdout);
  });
  std::fputs((json ? json_of(info, results) : summary_of(results)).c_str(), stdout);
  const bool good = std::ranges::all_of(results, [](const CaseResult& result) {
    return result.status == Status::kPassed || result.status == Status::kSkipped;
  });
  return good ? 0 : 1;
}
