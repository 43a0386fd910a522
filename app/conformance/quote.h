// Which section of which specification each case checks, known before any case runs.
//
// A section that begins with "practice: " is no rule of a specification: it is what front ends that exist rely on, or
// what a host must endure from a guest or a front end that breaks the rules.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <string_view>

namespace sluice::test {

struct Quote {
  // Of a case, "Suite.Case", or of one parameter of it, "Suite.Case/Parameter".
  Quote(std::string name, std::string section);
};

// Of a test, by GoogleTest's name for it, "Instance/Suite.Case/Parameter". Empty: it is no case.
std::string section_of(std::string_view test);

}  // namespace sluice::test

// As TEST_F and TEST_P, with the section.
#define CASE(fixture, name, section)                                                           \
  static const ::sluice::test::Quote quote_of_##fixture##_##name(#fixture "." #name, section); \
  TEST_F(fixture, name)
#define CASE_P(fixture, name, section)                                                         \
  static const ::sluice::test::Quote quote_of_##fixture##_##name(#fixture "." #name, section); \
  TEST_P(fixture, name)
