#!/usr/bin/env bash
# scripts/fuzz.sh TARGET [SECONDS]: builds one libFuzzer program and runs it; what it finds stays for the next run.
set -euo pipefail
cd "$(dirname "$0")/.."

targets=$(sed -n 's/^sluice_fuzz(//p' test/fuzz/CMakeLists.txt)
target=${1:-}
seconds=${2:-60}
if ! grep -qx -- "$target" <<<"$targets" || ! [[ $seconds =~ ^[1-9][0-9]*$ ]]; then
  echo "usage: scripts/fuzz.sh TARGET [SECONDS]   (default: 60), where TARGET is one of:" >&2
  sed 's/^/  /' <<<"$targets" >&2
  exit 2
fi

max_len=$(sed -n "/^sluice_fuzz($target$/,/)/s/.*MAX_LEN //p" test/fuzz/CMakeLists.txt)
scripts/build fuzz "$target"
cd build/fuzz/test/fuzz
symbolizer=$(command -v llvm-symbolizer-19 || command -v llvm-symbolizer || true)
export ASAN_OPTIONS="external_symbolizer_path=$symbolizer" UBSAN_OPTIONS="print_stacktrace=1"
echo "fuzz: $target for $seconds s; inputs that are new go to $PWD/$target.found, what fails to $PWD"
exec "./$target" -max_total_time="$seconds" -timeout=20 -max_len="$max_len" "$target.found" "$target.seeds"
