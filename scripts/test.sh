#!/usr/bin/env bash
# Builds Sluice and runs all tests. The last line is "N passed, N failed, N skipped"; the exit code tells the same.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
  cat <<'USAGE'
usage: scripts/test.sh [--quick | --only LABEL]

Installs what is missing (scripts/setup), builds and tests:
  release   label unit (C++ tests), static (format, layers, headers), rpc (Python tests of the daemon's RPC),
            lvol (a daemon with logical volumes that is killed), guest (a virtual machine that uses the disks) and
            bench (do the measurements work? briefly, and whatever the figures)
  asan      label unit with AddressSanitizer and UndefinedBehaviorSanitizer
  tsan      label unit with ThreadSanitizer
  fuzz      label fuzz: each libFuzzer program for a minute (longer: scripts/fuzz.sh)

  --quick       unit tests of the release only
  --only LABEL  unit (in three builds), static, rpc, lvol, guest, bench or fuzz
One test of them by hand: ctest --test-dir build/release -R NAME --output-on-failure
USAGE
}

refuse() {
  echo "test: $*" >&2
  usage >&2
  exit 2
}

presets=(release asan tsan fuzz)
labels='unit|static|rpc|lvol|guest|bench'
case ${1:-} in
  '') ;;
  --quick)
    presets=(release)
    labels=unit
    ;;
  --only)
    labels=${2:-}
    case $labels in
      unit) presets=(release asan tsan) ;;
      fuzz) presets=(fuzz) ;;
      static | rpc | lvol | guest | bench) presets=(release) ;;
      '') refuse "--only needs a label" ;;
      *) refuse "unknown label: $labels" ;;
    esac
    shift
    ;;
  --help | -h)
    usage
    exit 0
    ;;
  *) refuse "unknown option: $1" ;;
esac
[[ $# -le 1 ]] || refuse "one option at a time"

# Programs of another Debian release than the symbolizer's default name.
symbolizer=$(command -v llvm-symbolizer-19 || command -v llvm-symbolizer || true)
export ASAN_OPTIONS="detect_stack_use_after_return=1:external_symbolizer_path=$symbolizer"
export UBSAN_OPTIONS="print_stacktrace=1:external_symbolizer_path=$symbolizer"
export TSAN_OPTIONS="second_deadlock_stack=1:external_symbolizer_path=$symbolizer"

results=()
phases=()

# phase NAME COMMAND...: runs it, remembers how long it took, returns its exit code.
phase() {
  local name=$1 begin=$SECONDS code=0 verdict=ok
  shift
  echo "== $name"
  "$@" || code=$?
  if [[ $code -ne 0 ]]; then verdict=FAILED; fi
  phases+=("$(printf '%-14s %5d s  %s' "$name" $((SECONDS - begin)) "$verdict")")
  return "$code"
}

run_tests() {
  local preset=$1 wanted=$2 result=$3
  # The summary counts the cases in the output that CTest keeps: it must keep the end of it.
  ctest --test-dir "build/$preset" --label-regex "^($wanted)\$" --parallel "$(nproc)" --no-tests=error \
    --output-on-failure --output-junit "$result" --test-output-truncation head \
    --test-output-size-passed 4194304 --test-output-size-failed 4194304 </dev/null
}

if ! phase setup scripts/setup; then
  echo "0 passed, 1 failed, 0 skipped"
  exit 1
fi
for preset in "${presets[@]}"; do
  # A build that fails leaves no results, which the summary counts as a failure; the other builds are tested anyway.
  result=$PWD/build/$preset/tests/$preset.xml
  mkdir -p "$(dirname "$result")"
  rm -f "$result"
  results+=("$result")
  wanted=unit
  targets=()
  if [[ $preset == release ]]; then wanted=$labels; fi
  if [[ $preset == fuzz ]]; then wanted=fuzz targets=(fuzzers); fi
  if phase "build $preset" scripts/build "$preset" "${targets[@]}"; then
    phase "test $preset" run_tests "$preset" "$wanted" "$result" || true
  elif [[ $preset == release ]]; then
    break
  fi
done

echo
printf '%s\n' "${phases[@]}" "$(printf '%-14s %5d s' 'all together' "$SECONDS")"
scripts/test-summary "${results[@]}"
