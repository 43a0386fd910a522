# What runs once or waits most of the time is not optimised: with a sanitizer, that takes half of the time to compile.
set(SLUICE_QUICKLY_COMPILED -O0 -g1)

# sluice_library(name SOURCES ... LINKS ... PRIVATE ...): a static library of one folder, included as "lib/...".
function(sluice_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;LINKS;PRIVATE" ${ARGN})
  add_library(${name} STATIC ${ARG_SOURCES})
  target_include_directories(${name} PUBLIC ${PROJECT_SOURCE_DIR})
  target_link_libraries(${name} PUBLIC ${ARG_LINKS} PRIVATE sluice_warnings ${ARG_PRIVATE})
endfunction()

# sluice_program(name SOURCES ... LINKS ...): a program whose main.cc reads its command line.
function(sluice_program name)
  cmake_parse_arguments(ARG "" "" "SOURCES;LINKS" ${ARGN})
  add_executable(${name} main.cc ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE CLI11::CLI11 ${ARG_LINKS} sluice_warnings)
  set_source_files_properties(main.cc PROPERTIES COMPILE_OPTIONS "${SLUICE_QUICKLY_COMPILED}")
endfunction()

# sluice_test(name [COMPUTES] SOURCES ... LINKS ...): one GoogleTest binary, one CTest entry, label "unit". COMPUTES: its
# time goes to its own sources more than to what they test.
function(sluice_test name)
  cmake_parse_arguments(ARG "COMPUTES" "TIMEOUT" "SOURCES;LINKS" ${ARGN})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 120)
  endif()
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE ${ARG_LINKS} GTest::gmock GTest::gtest GTest::gtest_main sluice_warnings)
  target_compile_options(${name} PRIVATE ${SLUICE_QUICKLY_COMPILED} $<$<BOOL:${ARG_COMPUTES}>:-O1>)
  add_test(NAME ${name} COMMAND ${name})
  set_tests_properties(${name} PROPERTIES LABELS unit TIMEOUT ${ARG_TIMEOUT})
endfunction()

# sluice_bench(name SOURCES ... LINKS ...): one Google Benchmark program, measured by scripts/bench.sh. Its CTest entry,
# label "bench", runs each row for a moment, to see that it works; only the rows that need two cores are left out.
function(sluice_bench name)
  cmake_parse_arguments(ARG "" "" "SOURCES;LINKS" ${ARGN})
  if(SLUICE_SANITIZE)
    return()
  endif()
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE ${ARG_LINKS} benchmark::benchmark sluice_warnings)
  add_test(NAME ${name} COMMAND ${name} --benchmark_min_time=0.001 --benchmark_filter=-two_cores)
  set_tests_properties(${name} PROPERTIES LABELS bench TIMEOUT 120)
endfunction()

# sluice_fuzz(name SEEDS program SOURCES ... LINKS ...): one libFuzzer program, built by the preset "fuzz" only. SEEDS is
# a program that writes the first inputs into the directory that it is given. The CTest entry, label "fuzz", runs it for
# a minute; longer: scripts/fuzz.sh. The target "fuzzers" builds all of them, and nothing else.
function(sluice_fuzz name)
  cmake_parse_arguments(ARG "" "SEEDS;MAX_LEN" "SOURCES;LINKS" ${ARGN})
  if(NOT SLUICE_SANITIZE MATCHES "fuzzer-no-link")
    return()
  endif()
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE ${ARG_LINKS} sluice_warnings)
  target_link_options(${name} PRIVATE -fsanitize=fuzzer)
  add_executable(${ARG_SEEDS} ${ARG_SEEDS}.cc)
  target_link_libraries(${ARG_SEEDS} PRIVATE ${ARG_LINKS} sluice_warnings)
  set(seeds ${CMAKE_CURRENT_BINARY_DIR}/${name}.seeds)
  set(found ${CMAKE_CURRENT_BINARY_DIR}/${name}.found)
  add_dependencies(${name} ${ARG_SEEDS})
  add_custom_command(TARGET ${name} POST_BUILD
    COMMAND ${CMAKE_COMMAND} -E make_directory ${seeds} ${found}
    COMMAND ${ARG_SEEDS} ${seeds})
  if(NOT TARGET fuzzers)
    add_custom_target(fuzzers)
  endif()
  add_dependencies(fuzzers ${name})
  add_test(NAME ${name} COMMAND ${name} -seed=1 -max_total_time=60 -timeout=20 -max_len=${ARG_MAX_LEN} ${found} ${seeds})
  set_tests_properties(${name} PROPERTIES LABELS fuzz TIMEOUT 300)
endfunction()
