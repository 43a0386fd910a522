# Compiler, language level, warnings and instrumentation, in one place.
#
# GCC below 14 silently miscompiles co_await inside full expressions (temporaries are destroyed twice), which
# shows as double frees in code that is correct. Sluice is built and tested with clang 19.
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 14)
  message(FATAL_ERROR "GCC ${CMAKE_CXX_COMPILER_VERSION} miscompiles coroutines (co_await in full expressions, "
                      "fixed in GCC 14). Use clang 19: cmake --preset release, or CXX=clang++-19.")
endif()

set(CMAKE_CXX_STANDARD 23)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)

set(SLUICE_SANITIZE "" CACHE STRING "Sanitizers: address,undefined | thread | fuzzer combinations; empty for none")

add_compile_options(-march=x86-64-v2 -fno-omit-frame-pointer)
add_link_options(-fuse-ld=lld-19)

if(SLUICE_SANITIZE)
  add_compile_options(-fsanitize=${SLUICE_SANITIZE} -fno-sanitize-recover=all)
  add_link_options(-fsanitize=${SLUICE_SANITIZE})
endif()

# Warnings for our own code only (sluice_warnings is linked by our targets, never exported to dependencies).
add_library(sluice_warnings INTERFACE)
target_compile_options(sluice_warnings INTERFACE -Wall -Wextra -Wshadow -Wconversion -Werror
  # Known false alarms: designated initialisers that leave members at their default are meant.
  -Wno-missing-field-initializers -Wno-missing-designated-field-initializers)
