#include "app/conformance/quote.h"

#include <map>

namespace sluice::test {
namespace {

// Filled while static objects are made, in any order of files.
std::map<std::string, std::string, std::less<>>& quotes() {
  static std::map<std::string, std::string, std::less<>> all;
  return all;
}

}  // namespace

Quote::Quote(std::string name, std::string section) { quotes()[std::move(name)] = std::move(section); }

std::string section_of(std::string_view test) {
  const size_t dot = test.find('.');
  const size_t slash = test.find('/');
  if (dot != test.npos && slash < dot) test.remove_prefix(slash + 1);
  auto found = quotes().find(test);
  if (found == quotes().end()) found = quotes().find(test.substr(0, test.find('/')));
  return found == quotes().end() ? std::string() : found->second;
}

}  // namespace sluice::test
